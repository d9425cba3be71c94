"""What the keys of a configuration mean together: everything that one key alone cannot tell.

Flow      check_all(config) → problems; warnings_for(config) → advice
Files     certificates and keys are read when check_files is set
Errors    none raised; a problem is (key path, message)
"""

from __future__ import annotations

import grp
import ipaddress
import os
import pwd
import re
import resource
from collections.abc import Iterator

from gateway.accounts.check import advice as accounts_advice
from gateway.accounts.check import check_config, check_mechanisms
from gateway.config_model import Config, ListenConfig, RouteConfig
from gateway.mail.address import normal_domain
from gateway.mail.unique_id import UniqueIds
from gateway.net.tls import KeyPair, TlsError
from gateway.queue.routing import Route, normal_pattern, parse_next_hop, patterns_of

EXPIRES_SOON_DAYS = 14.0  # ACME clients renew 30 days before: something went wrong by then

KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str]

# RFC 5321 §4.1.2 Domain, and what RFC 1034 §3.1 allows of it in length.
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[^\W_]([\w-]{0,61}[^\W_])?(\.[^\W_]([\w-]{0,61}[^\W_])?)*\Z")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 §5.6.2 token


def check_all(config: Config, check_files: bool = True) -> list[Problem]:
    """Every contradiction in it."""
    problems = [
        *_check_identity(config),
        *_check_listeners(config),
        *_check_access(config),
        *_check_routes(config),
        *_check_amounts(config),
        *check_config(config.accounts, config.auth),
        *_check_pop(config),
    ]
    if check_files:
        problems += _check_files(config)
    return problems


def _check_identity(config: Config) -> Iterator[Problem]:
    name = config.hostname
    if not (name.isascii() and _DOMAIN.match(name)) and not _is_address_literal(name):
        yield ("hostname",), f'"{name}" is no domain and no [address] (RFC 5321 §4.1.1.1)'
    if config.group and not config.user:
        yield ("group",), "has no meaning without user"
    if config.user:
        try:
            uid = pwd.getpwnam(config.user).pw_uid
        except KeyError:
            yield ("user",), f'there is no account "{config.user}"'
        else:
            if os.geteuid() not in (0, uid):
                yield (
                    ("user",),
                    f'only root can become "{config.user}"; start as root or leave it out',
                )
    if config.group:
        try:
            grp.getgrnam(config.group)
        except KeyError:
            yield ("group",), f'there is no group "{config.group}"'


def _is_address_literal(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]").removeprefix("IPv6:"))
    except ValueError:
        return False
    return name.startswith("[") and name.endswith("]")


def _check_listeners(config: Config) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, listen in enumerate(config.listen):
        at: KeyPath = ("listen", index)
        address = str(listen.address)
        if listen.address.path or listen.address.port:  # each ":0" is another port
            if address in seen:
                yield (*at, "address"), f"{address} is taken by listen[{seen[address]}]"
            seen.setdefault(address, index)
        if listen.tls != "off" and config.tls.certificate is None:
            yield (*at, "tls"), f'"{listen.tls}" needs tls.certificate and tls.key'
        yield from check_mechanisms(listen.auth_mechanisms, (*at, "auth_mechanisms"))
        if listen.service == "http":
            yield from _check_http(listen, at)
        if listen.service == "pop2" and listen.tls == "starttls":
            yield (*at, "tls"), 'POP2 has no STARTTLS; use "implicit" or "off"'
        if listen.preauth and (listen.service != "imap" or not listen.address.path):
            yield (*at, "preauth"), "is for IMAP on a unix socket"
        if listen.service in ("pop3", "pop2", "imap") and listen.xclient_from:
            yield (*at, "xclient_from"), "is for SMTP and LMTP; use proxy_protocol"
        if listen.service == "lmtp" and listen.address.port == 25:
            yield (*at, "address"), "LMTP must not be served on port 25 (RFC 2033 §5)"


def _check_http(listen: ListenConfig, at: KeyPath) -> Iterator[Problem]:
    if listen.tls == "starttls":
        yield (*at, "tls"), 'HTTP has no STARTTLS; use "implicit" or "off"'
    for key in ("proxy_protocol", "xclient_from"):
        if getattr(listen, key):
            yield (*at, key), "is not for HTTP"


def _check_access(config: Config) -> Iterator[Problem]:
    if not config.access.open_relay:
        for network in config.access.relay_from.networks:
            if network.prefixlen == 0:
                yield (
                    ("access", "relay_from"),
                    f"{network} lets everybody relay through us; name your networks, or set "
                    "open_relay = true where nobody else can connect",
                )


def _check_routes(config: Config) -> Iterator[Problem]:
    taken: dict[str, int] = {}
    catch_all: int | None = None
    for index, route in enumerate(config.route):
        at: KeyPath = ("route", index)
        found = [*_check_route(route, at)]
        yield from found
        if found:
            continue
        try:
            Route(route, config.delivery, index)
        except ValueError as error:
            yield at, str(error)
            continue
        if catch_all is not None:
            yield at, f'can never be reached: route[{catch_all}] takes every domain ("*")'
            continue
        for pattern in map(normal_pattern, route.domains):
            if pattern in taken:
                yield (
                    (*at, "domains"),
                    f'"{pattern}" goes to route[{taken[pattern]}] already, the first match wins',
                )
            elif not route.recipients:
                taken[pattern] = index
                catch_all = index if pattern == "*" else catch_all


def _check_route(route: RouteConfig, at: KeyPath) -> Iterator[Problem]:
    patterns = set()
    for position, domain in enumerate(route.domains):
        try:
            patterns.add(normal_pattern(domain))
        except ValueError as error:
            yield (*at, "domains", position), str(error)
    schemes = set()
    for position, url in enumerate(route.next_hop):
        try:
            schemes.add(parse_next_hop(url).scheme)
        except ValueError as error:
            yield (*at, "next_hop", position), str(error)
    for position, mailbox in enumerate(route.recipients):
        local_part, _, domain = mailbox.rpartition("@")
        mine = {*patterns_of(normal_domain(domain)), "*"} & patterns
        if not local_part or not domain:
            yield (*at, "recipients", position), f'"{mailbox}" is not local-part@domain'
        elif patterns and not mine:
            yield (*at, "recipients", position), f'"{mailbox}" is in none of the route\'s domains'
    for position, address in enumerate(route.source_addresses):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            yield (*at, "source_addresses", position), f'"{address}" is no IP address'
    for name, value in route.http_headers.items():
        if not _FIELD_NAME.match(name) or not value.isprintable():
            yield (*at, "http_headers"), f'"{name}" is no field name, or its value not printable'
    if schemes and not schemes & {"http", "https"} and route.http_headers:
        yield (*at, "http_headers"), "is for http:// and https:// next hops only"
    if route.tls_name and route.tls != "verify":
        yield (*at, "tls_name"), 'has no meaning without tls = "verify"'


def _check_amounts(config: Config) -> Iterator[Problem]:
    if config.trace.keep_octets < config.trace.file_octets:
        yield ("trace", "keep_octets"), "must hold at least one file: trace.file_octets is more"
    if config.delivery.initial_connections > config.delivery.max_connections:
        yield ("delivery", "initial_connections"), "is more than delivery.max_connections"
    if 0.0 < config.limits.heartbeat_s < 1.0:
        yield ("limits", "heartbeat_s"), "must be 0, or at least a second: a busy loop may pause"
    spool = config.spool
    if spool.segment_octets % 4096:
        yield ("spool", "segment_octets"), "must be a multiple of 4096"
    if spool.chunk_octets > spool.segment_octets // 8:
        yield ("spool", "chunk_octets"), "must be at most an eighth of segment_octets"
    if spool.message_pending_octets < spool.chunk_octets:
        yield ("spool", "message_pending_octets"), "must be at least chunk_octets"
    if spool.compact_below > spool.compact_below_when_full:
        yield ("spool", "compact_below"), "must be at most compact_below_when_full"


def _check_pop(config: Config) -> Iterator[Problem]:
    try:
        UniqueIds(config.pop.unique_id)
    except ValueError as error:
        yield ("pop", "unique_id"), str(error)


def _check_files(config: Config) -> Iterator[Problem]:
    tls = config.tls
    if tls.certificate is not None and tls.key is None:
        yield ("tls", "key"), "is missing: the private key of tls.certificate"
    elif tls.key is not None and tls.certificate is None:
        yield ("tls", "certificate"), "is missing: the certificate of tls.key"
    elif tls.certificate is not None and tls.key is not None:
        try:
            KeyPair.read(tls.certificate, tls.key)
        except TlsError as error:
            yield ("tls", "certificate"), str(error)
    for index, sni in enumerate(tls.sni):
        try:
            pair = KeyPair.read(sni.certificate, sni.key, sni.names)
        except TlsError as error:
            yield ("tls", "sni", index), str(error)
        else:
            if not pair.names:
                yield ("tls", "sni", index), "names no server; set names"
    if tls.ca_file is not None and not os.access(tls.ca_file, os.R_OK):
        yield ("tls", "ca_file"), f"{tls.ca_file} cannot be read"
    if tls.client_ca_file is not None and not os.access(tls.client_ca_file, os.R_OK):
        yield ("tls", "client_ca_file"), f"{tls.client_ca_file} cannot be read"
    if config.log.file is not None and not config.log.file.parent.is_dir():
        yield ("log", "file"), f"there is no directory {config.log.file.parent}"


def warnings_for(config: Config) -> list[str]:
    """What will work and is still worth a look."""
    found = []
    if "." not in config.hostname:
        found.append("hostname: not fully qualified; many servers refuse such an EHLO")
    if config.access.open_relay:
        found.append("access.open_relay: everybody in relay_from may relay")
    cpus = len(os.sched_getaffinity(0))
    if config.workers > cpus:
        found.append(f"workers: {config.workers} is more than the {cpus} CPUs we may use")
    wanted = config.descriptors
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and wanted > hard and os.geteuid() != 0:
        found.append(
            f"limits.sessions: {wanted} descriptors a worker may be needed, {hard} are allowed "
            "(LimitNOFILE= of systemd, ulimit -Hn)"
        )
    if not config.route:
        found.append("route: there is none, all mail will be refused")
    for listen in config.listen:
        if listen.service == "http" and not listen.address.is_loopback and listen.tls == "off":
            found.append(f"listen {listen.address}: HTTP in clear on a public address")
    found += accounts_advice(config.accounts, config.auth)
    stores = any(url == "store:" for route in config.route for url in route.next_hop)
    if stores and not config.accounts.postmaster:
        found.append(
            "accounts.postmaster: not set; mail for postmaster@ needs an account or an alias of that "
            "name (RFC 5321 §4.5.1)"
        )
    keys = [("tls", config.tls.certificate, config.tls.key)]
    keys += [
        (f"tls.sni[{index}]", sni.certificate, sni.key) for index, sni in enumerate(config.tls.sni)
    ]
    for section, certificate, key in keys:
        if certificate is not None and key is not None:
            found += _warn_pair(section, KeyPair.read(certificate, key))
    return found


def _warn_pair(section: str, pair: KeyPair) -> Iterator[str]:
    days = pair.days_left()
    advice = "put a new one there and send SIGHUP"
    if days < 0:
        yield f"{section}.certificate: {pair.certificate_file} expired {-days:.0f} days ago; {advice}"
    elif days < EXPIRES_SOON_DAYS:
        yield f"{section}.certificate: {pair.certificate_file} expires in {days:.0f} days; {advice}"
    if os.stat(pair.key_file).st_mode & 0o004:
        yield f"{section}.key: {pair.key_file}: everybody on this host can read the key; chmod 600 it"

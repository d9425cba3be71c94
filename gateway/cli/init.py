"""`gateway init DIR`: a first configuration, a key and a self-signed certificate.

Files     DIR/edge.toml, DIR/tls.pem, DIR/tls.key (mode 0600); nothing is ever overwritten.  With --demo also
          DIR/accounts.txt (mode 0600), names and passwords of the accounts it makes
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import click

from gateway.cli.common import fail

CERTIFICATE_DAYS = 825  # what clients accept at most from a private authority (Apple, since 2019)

DEMO_HOST = "gateway.example.test"
DEMO_DOMAIN = "example.test"
DEMO_ACCOUNTS = ("alice", "bob")


@click.command("init")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--hostname", help="how the gateway calls itself [default: this host's name]")
@click.option(
    "--demo", is_flag=True, help="a stand-alone gateway on loopback ports for a first try"
)
def command(directory: Path, hostname: str | None, demo: bool) -> None:
    """Write DIRECTORY/edge.toml, commented, with a key and a self-signed certificate."""
    from gateway.config_text import render

    config, certificate, key = (directory / name for name in ("edge.toml", "tls.pem", "tls.key"))
    for path in (config, certificate, key):
        if path.exists():
            fail(f"{path} exists; choose another directory or remove it")
    name = hostname or (DEMO_HOST if demo else socket.getfqdn())
    text = render(demo_values() if demo else first_values(name))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        certificate_pem, key_pem = self_signed(name)
        _write(key, key_pem, 0o600)
        _write(certificate, certificate_pem, 0o644)
        _write(config, text.encode(), 0o644)
        if demo:
            _make_accounts(config, directory / "accounts.txt")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    click.echo(f"wrote {config}, {certificate} and {key}")
    click.echo(f"next: gateway check --config {config}; gateway serve --config {config}")


def first_values(hostname: str) -> dict[str, Any]:
    """What a first configuration sets: it accepts nothing from outside until it has a route."""
    return {
        "hostname": hostname,
        "state_dir": "state",
        "tls": {"certificate": "tls.pem", "key": "tls.key"},
        "listen": [
            {"service": "smtp", "address": "0.0.0.0:25", "tls": "starttls"},
            {"service": "http", "address": "127.0.0.1:2080"},
        ],
        "route": [{"domains": ["example.org"], "next_hop": ["smtp://127.0.0.1:10025"]}],
    }


def demo_values() -> dict[str, Any]:
    """A gateway that anybody can start: loopback, unprivileged ports, two mailboxes."""
    return {
        "hostname": DEMO_HOST,
        "state_dir": "state",
        "tls": {"certificate": "tls.pem", "key": "tls.key"},
        "listen": [
            {"service": "smtp", "address": "127.0.0.1:2525", "tls": "starttls"},
            {"service": "submission", "address": "127.0.0.1:2587", "tls": "starttls"},
            {"service": "submission", "address": "127.0.0.1:2465", "tls": "implicit"},
            {"service": "lmtp", "address": "127.0.0.1:2424"},
            {"service": "pop3", "address": "127.0.0.1:2110", "tls": "starttls"},
            {"service": "pop3", "address": "127.0.0.1:2995", "tls": "implicit"},
            {"service": "pop2", "address": "127.0.0.1:2109"},
            {"service": "imap", "address": "127.0.0.1:2143", "tls": "starttls"},
            {"service": "imap", "address": "127.0.0.1:2993", "tls": "implicit"},
            {"service": "http", "address": "127.0.0.1:2080"},
        ],
        "route": [{"domains": [DEMO_DOMAIN], "next_hop": ["store:"]}],
        "spool": {"segment_octets": 8 * 1024 * 1024},  # files are made in advance: keep a try small
        "accounts": {"default_domain": DEMO_DOMAIN, "postmaster": DEMO_ACCOUNTS[0]},
        "auth": {"plaintext_auth": ["127.0.0.0/8"]},
        "store": {"directory": "mail"},
    }


def _make_accounts(config_file: Path, passwords: Path) -> None:
    """The demo's accounts; who they are stands in a file that `make run` shows."""
    from gateway.accounts.build import hasher_of
    from gateway.accounts.database import Database
    from gateway.accounts.embedded import make_record
    from gateway.accounts.model import Account
    from gateway.config import load

    config = load(config_file)
    config.accounts_file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    lines = []
    with contextlib.closing(Database(config.accounts_file)) as database:
        for name in DEMO_ACCOUNTS:
            password = secrets.token_urlsafe(9)
            account = Account(f"{name}@{DEMO_DOMAIN}")
            database.add(make_record(account, password, hasher_of(config.auth)))
            lines.append(f"{account.name}  {password}\n")
    _write(passwords, "".join(lines).encode(), 0o600)
    click.echo("accounts:\n  " + "  ".join(lines), nl=False)


def self_signed(hostname: str) -> tuple[bytes, bytes]:
    """PEM certificate and key for this host and for loopback: EC P-256, as everybody verifies it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hostname[:64])])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.DNSName(n) for n in {hostname: 0, "localhost": 0}]
    names += [x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", "::1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)

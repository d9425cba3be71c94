"""TLS: the server's certificates (default and by SNI, re-read while running), the client's contexts.

Owns      KeyPair, ServerOptions, TlsContexts
Flow      KeyPair.read (before privileges drop) → TlsContexts.server → sni_callback picks the pair
Files     PEM chains and keys: read whole, handed to OpenSSL through a memfd, never written
Errors    TlsError names the file; reload() returns it instead and keeps what was in use
Security  keys stay in this process; TLS 1.2 and up; no renegotiation; forward secrecy only
Standards RFC 8446, RFC 5246, RFC 5929 (channel binding), RFC 6066 §3 (SNI), RFC 9325, RFC 7435, RFC 3207 §4
Bugs      a client certificate that is offered must verify: ssl cannot "take any and tell"
"""

from __future__ import annotations

import functools
import os
import ssl
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec

from gateway.config_model import TlsConfig

OFF: Final = "off"
OPPORTUNISTIC: Final = "opportunistic"
REQUIRED: Final = "required"
VERIFY: Final = "verify"

# RFC 9325 §4.2, and behind it AES-CBC with forward secrecy: a peer that knows nothing newer
# (Exchange 2013) would otherwise send in clear.  AES-128 first: cheaper, and nobody breaks it.
# The suites of TLS 1.3 are OpenSSL's own.
CIPHERS = (
    "ECDHE+AES128+AESGCM:ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:ECDHE+AES"
    ":!aNULL:!PSK:!CAMELLIA:!ARIA:!AESCCM"
)

# Without verification a weak key or an SHA-1 signature is no reason to send in clear (RFC 7435 §3).
CIPHERS_UNVERIFIED = CIPHERS + ":@SECLEVEL=1"

MINIMUM_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class TlsError(Exception):
    """A certificate or key cannot be used; the text names the file and the reason."""


class KeyPair(msgspec.Struct, frozen=True):
    """A certificate chain with its key, as octets: read once, while we still may."""

    certificate_file: str
    key_file: str
    certificate: bytes
    key: bytes
    names: tuple[str, ...]  # DNS names it serves, lower case; "*.example.org" covers one label
    expires_at: int  # ns UTC
    end_point: bytes = b""  # its hash as a channel binding (RFC 5929 §4); empty: has none

    def __repr__(self) -> str:  # the generated one would print the key
        return f"KeyPair({self.certificate_file!r}, names={self.names})"

    @classmethod
    def read(cls, certificate: str | Path, key: str | Path, names: Iterable[str] = ()) -> KeyPair:
        """The pair in these files; without names those of its subjectAltName.  Raises TlsError."""
        octets = []
        for path in (certificate, key):
            try:
                octets.append(Path(path).read_bytes())
            except OSError as error:
                raise TlsError(f"{path}: {error.strerror}") from None
        found, expires_at, end_point = _read_certificate(octets[0], str(certificate))
        chosen = tuple(name.lower() for name in names) or found
        pair = cls(str(certificate), str(key), octets[0], octets[1], chosen, expires_at, end_point)
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), pair)  # does the key belong to it?
        return pair

    def days_left(self, now: int | None = None) -> float:
        """Until the certificate expires; negative afterwards."""
        return (self.expires_at - (time.time_ns() if now is None else now)) / 86400e9


class ServerOptions(msgspec.Struct, frozen=True):
    """What all server contexts share."""

    minimum_version: str = "1.2"  # RFC 9325 §3.1.1; "1.3" locks older peers into clear text
    ciphers: str = CIPHERS
    # Tickets a TLS 1.3 handshake sends (OpenSSL: 2).  A mail client resumes one at most.
    tickets: int = 1
    client_ca_file: str = ""  # ask clients for a certificate of these CAs; "" = do not ask


DEFAULT_OPTIONS: Final = ServerOptions()


class TlsContexts:
    """Server context with the certificates in use, and client contexts by verification mode.

    `server` is one object for the life of the process, so listeners may keep it: sni_callback
    (called in every handshake, with or without SNI) moves each connection to the context of its
    certificate as of now.
    """

    def __init__(
        self,
        default: KeyPair | None = None,
        sni: Sequence[KeyPair] = (),
        options: ServerOptions = DEFAULT_OPTIONS,
        client_minimum_version: str = "1.2",
        client_ca_file: str = "",
    ) -> None:
        self.options = options
        self.default = default
        self.sni = tuple(sni)
        self._client_minimum = MINIMUM_VERSIONS[client_minimum_version]
        self._client_ca_file = client_ca_file
        self.server: ssl.SSLContext | None = None
        # The hash of the certificate that each context shows, for connections older than a reload, too.
        self._end_points: WeakKeyDictionary[ssl.SSLContext, bytes] = WeakKeyDictionary()
        if default is not None:
            self._current, self._by_name = self._build(default, self.sni)
            self.server = server_context(default, options)
            self.server.sni_callback = self._choose

    @classmethod
    def from_config(cls, config: TlsConfig) -> TlsContexts:
        """Reads all files that [tls] names.  Raises TlsError."""
        default, sni = read_pairs(config)
        return cls(
            default,
            sni,
            ServerOptions(config.min_version, client_ca_file=str(config.client_ca_file or "")),
            client_minimum_version=config.min_version,
            client_ca_file=str(config.ca_file or ""),
        )

    # -- server ----------------------------------------------------------------------------------

    def _build(
        self, default: KeyPair, sni: Sequence[KeyPair]
    ) -> tuple[ssl.SSLContext, dict[str, ssl.SSLContext]]:
        by_name: dict[str, ssl.SSLContext] = {}
        for pair in sni:
            context = server_context(pair, self.options)
            self._end_points[context] = pair.end_point
            for name in pair.names:
                by_name.setdefault(name, context)
        context = server_context(default, self.options)
        self._end_points[context] = default.end_point
        return context, by_name

    def _choose(
        self, connection: ssl.SSLObject, server_name: str | None, context: ssl.SSLContext
    ) -> None:
        # RFC 6066 §3: an unknown name is no error here; the client judges the certificate it gets.
        chosen = self._current
        if server_name is not None and self._by_name:
            name = server_name.lower()
            chosen = (
                self._by_name.get(name)
                or self._by_name.get("*." + name.partition(".")[2])
                or self._current
            )
        connection.context = chosen

    def channel_bindings(self, connection: ssl.SSLObject) -> dict[str, bytes]:
        """What SCRAM-…-PLUS may bind to on a connection that we serve, by name.

        tls-exporter (RFC 9266) is missing: Python's ssl does not hand out keying material.
        """
        end_point = self._end_points.get(connection.context)
        return {"tls-server-end-point": end_point} if end_point else {}

    def reload(
        self, default: KeyPair | None = None, sni: Sequence[KeyPair] | None = None
    ) -> TlsError | None:
        """New handshakes use the pairs given, or the same files read again.

        All or nothing: with an error nothing changed, and it is returned.  Sessions go on as they are.
        The authorities of client contexts are read again when they are needed next.
        """
        TlsContexts.client.cache_clear()
        if self.default is None:
            return None
        try:
            if default is None:
                old = self.default
                default = KeyPair.read(old.certificate_file, old.key_file, old.names)
            if sni is None:
                sni = [KeyPair.read(p.certificate_file, p.key_file, p.names) for p in self.sni]
            built = self._build(default, sni)
        except TlsError as error:
            return error
        self.default, self.sni = default, tuple(sni)
        self._current, self._by_name = built
        return None

    def pairs(self) -> tuple[KeyPair, ...]:
        """All pairs in use, the default first (for the expiry metric)."""
        return () if self.default is None else (self.default, *self.sni)

    def expiring(self, within_days: float = 14.0, now: int | None = None) -> list[str]:
        """One sentence for each certificate that has expired or soon will."""
        texts = []
        for pair in self.pairs():
            days = pair.days_left(now)
            if days < 0:
                texts.append(f"{pair.certificate_file}: expired {-days:.0f} days ago")
            elif days < within_days:
                texts.append(f"{pair.certificate_file}: expires in {days:.0f} days")
        return texts

    # -- client ----------------------------------------------------------------------------------

    @functools.lru_cache(maxsize=64)  # noqa: B019  (one TlsContexts a process)
    def client(self, mode: str, ca_file: str = "") -> ssl.SSLContext:
        """The context for a route's mode; OPPORTUNISTIC and REQUIRED do not verify, VERIFY does.

        Without any ca_file the system's authorities are trusted.  Give start_tls the next hop's name as
        server_hostname in every mode: it is the SNI.  Raises TlsError.
        """
        if mode not in {OPPORTUNISTIC, REQUIRED, VERIFY}:
            raise ValueError(f"{mode!r} is no TLS mode with a context")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name
        context.minimum_version = self._client_minimum
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        if mode == VERIFY:
            ca_file = ca_file or self._client_ca_file
            context.set_ciphers(CIPHERS)
            try:
                if ca_file:
                    context.load_verify_locations(cafile=ca_file)
                else:
                    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
            except (OSError, ssl.SSLError) as error:
                raise TlsError(f"{ca_file or 'system CAs'}: {error}") from None
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.set_ciphers(CIPHERS_UNVERIFIED)
        return context


def read_pairs(config: TlsConfig) -> tuple[KeyPair | None, list[KeyPair]]:
    """The default pair and those by SNI, to be handed to reload().  Raises TlsError."""
    default = None
    if config.certificate is not None and config.key is not None:
        default = KeyPair.read(config.certificate, config.key)
    return default, [KeyPair.read(s.certificate, s.key, s.names) for s in config.sni]


def server_context(pair: KeyPair, options: ServerOptions = DEFAULT_OPTIONS) -> ssl.SSLContext:
    """A context that serves this pair.  Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = MINIMUM_VERSIONS[options.minimum_version]
    context.options |= (
        ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    )
    context.num_tickets = options.tickets
    if options.tickets == 0:
        context.options |= ssl.OP_NO_TICKET  # TLS 1.2 tickets are an option of their own
    try:
        context.set_ciphers(options.ciphers)
    except ssl.SSLError:
        raise TlsError(f"ciphers {options.ciphers!r}: none of them is known to OpenSSL") from None
    if options.client_ca_file:
        try:
            context.load_verify_locations(cafile=options.client_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise TlsError(f"{options.client_ca_file}: {error}") from None
        context.verify_mode = ssl.CERT_OPTIONAL
    _load(context, pair)
    return context


def describe(connection: ssl.SSLObject | ssl.SSLSocket) -> tuple[str, str, int]:
    """(protocol version, cipher suite, secret bits); ("", "", 0) before the handshake is done."""
    cipher = connection.cipher()
    if cipher is None:
        return "", "", 0
    return connection.version() or "", cipher[0], cipher[2]


def _load(context: ssl.SSLContext, pair: KeyPair) -> None:
    # ssl loads from named files only; a memfd is a file nobody else can name or read.
    descriptor = os.memfd_create("tls")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pair.certificate + b"\n" + pair.key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=_refuse_password)
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        raise TlsError(f"{pair.certificate_file} with {pair.key_file}: {reason}") from None
    except _EncryptedKeyError:
        raise TlsError(f"{pair.key_file}: encrypted; store it without a pass phrase") from None
    finally:
        os.close(descriptor)


class _EncryptedKeyError(Exception):
    pass


def _refuse_password() -> str:
    raise _EncryptedKeyError  # OpenSSL would ask on the terminal


def _read_certificate(octets: bytes, path: str) -> tuple[tuple[str, ...], int, bytes]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    try:
        certificate = x509.load_pem_x509_certificate(octets)
    except ValueError:
        raise TlsError(f"{path}: no PEM certificate in it") from None
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(name.lower() for name in san.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        names = ()
    # RFC 5929 §4.1: the hash of its signature, but never one weaker than SHA-256.
    algorithm = certificate.signature_hash_algorithm
    if isinstance(algorithm, hashes.MD5 | hashes.SHA1):
        algorithm = hashes.SHA256()
    end_point = certificate.fingerprint(algorithm) if algorithm is not None else b""
    return names, int(certificate.not_valid_after_utc.timestamp()) * 1_000_000_000, end_point


def certificate_names(connection: ssl.SSLObject) -> tuple[str, ...]:
    """The e-mail addresses in the certificate that the client showed and TLS verified."""
    certificate = connection.getpeercert()  # {} unless it was verified
    if not certificate:
        return ()
    names: Any = certificate.get("subjectAltName", ())
    return tuple(value for kind, value in names if kind == "email")

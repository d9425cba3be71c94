"""net/tls.py: real handshakes, in memory and on sockets under uvloop."""

import asyncio
import contextlib
import datetime
import os
import ssl
import time
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.net import tls
from gateway.net.connection import Connection, DeadlineSweep


def make_pair(
    folder: Path, *names: str, days: int = 30, stem: str = "", password: bytes = b""
) -> tuple[Path, Path]:
    """A self-signed P-256 certificate for names; its files are STEM.pem and STEM.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=90))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    stem = stem or names[0].replace("*", "star")
    pem, key_file = folder / f"{stem}.pem", folder / f"{stem}.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return pem, key_file


def handshake(
    client: ssl.SSLContext,
    server: ssl.SSLContext,
    name: str | None = None,
    session: ssl.SSLSession | None = None,
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a connection made in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    c = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    s = server.wrap_bio(to_server, to_client, server_side=True)
    open_ends = [c, s]
    while open_ends:
        for end in list(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                pass
    with contextlib.suppress(ssl.SSLWantReadError):
        c.read(1)  # takes the session tickets in
    return c, s


def trusting(*certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for certificate in certificates:
        context.load_verify_locations(certificate)
    return context


def served_names(contexts: tls.TlsContexts, client: ssl.SSLContext, name: str) -> list[str]:
    assert contexts.server is not None
    certificate = handshake(client, contexts.server, name)[0].getpeercert()
    assert certificate is not None
    return [str(entry[1]) for entry in certificate["subjectAltName"]]


def test_sni_chooses_the_certificate_and_the_default_serves_the_rest(tmp_path: Path) -> None:
    files = [
        make_pair(tmp_path, *n) for n in (("mx.example.org",), ("mx.example.net", "*.example.com"))
    ]
    default, other = (tls.KeyPair.read(*f) for f in files)
    contexts = tls.TlsContexts(default, [other])
    client = trusting(*(f[0] for f in files))
    assert served_names(contexts, client, "MX.example.net") == ["mx.example.net", "*.example.com"]
    assert served_names(contexts, client, "a.example.com") == ["mx.example.net", "*.example.com"]
    assert served_names(contexts, client, "mx.example.org") == ["mx.example.org"]
    client.check_hostname = False
    assert served_names(contexts, client, "a.b.example.com") == ["mx.example.org"]
    assert served_names(contexts, client, "com") == ["mx.example.org"]


def test_reload_serves_the_new_pair_through_the_same_context(tmp_path: Path) -> None:
    pem, key = make_pair(tmp_path, "mx.example.org")
    contexts = tls.TlsContexts(tls.KeyPair.read(pem, key))
    kept, served = contexts.server, []
    client = contexts.client(tls.OPPORTUNISTIC)
    for _ in range(2):
        assert contexts.server is not None
        served.append(handshake(client, contexts.server)[0].getpeercert(True))
        make_pair(tmp_path, "mx.example.org")
        assert contexts.reload() is None
    assert contexts.server is kept
    assert served[0] != served[1]


@pytest.mark.parametrize("fault", ["mismatch", "garbage", "absent", "encrypted", "empty"])
def test_a_bad_pair_is_refused_and_the_old_one_stays(tmp_path: Path, fault: str) -> None:
    pem, key = make_pair(tmp_path, "mx.example.org")
    contexts = tls.TlsContexts(tls.KeyPair.read(pem, key))
    if fault == "mismatch":
        make_pair(tmp_path, "other.example.org")
        key.write_bytes((tmp_path / "other.example.org.key").read_bytes())
    elif fault == "garbage":
        pem.write_text("no certificate")
    elif fault == "absent":
        key.unlink()
    elif fault == "encrypted":
        make_pair(tmp_path, "mx.example.org", password=b"secret")
    else:
        pem.write_bytes(b"")
    error = contexts.reload()
    assert isinstance(error, tls.TlsError)
    assert "mx.example.org" in str(error)
    assert contexts.server is not None
    client, _ = handshake(contexts.client(tls.REQUIRED), contexts.server)
    assert client.version() == "TLSv1.3"


def test_a_bad_sni_pair_keeps_the_default_as_well(tmp_path: Path) -> None:
    files = [make_pair(tmp_path, n) for n in ("mx.example.org", "mx.example.net")]
    contexts = tls.TlsContexts(tls.KeyPair.read(*files[0]), [tls.KeyPair.read(*files[1])])
    before = contexts.default
    make_pair(tmp_path, "mx.example.org")
    files[1][1].write_text("")
    assert contexts.reload() is not None
    assert contexts.default is before


def test_the_key_is_needed_only_when_it_is_read(tmp_path: Path) -> None:
    pem, key = make_pair(tmp_path, "mx.example.org")
    pair = tls.KeyPair.read(pem, key)
    os.unlink(key)  # as if privileges had dropped
    contexts = tls.TlsContexts(pair)
    assert contexts.server is not None
    handshake(contexts.client(tls.REQUIRED), contexts.server)
    assert b"PRIVATE" not in repr(pair).encode()


def test_expiry(tmp_path: Path) -> None:
    pair = tls.KeyPair.read(*make_pair(tmp_path, "mx.example.org", days=10))
    contexts = tls.TlsContexts(pair)
    assert 9.9 < pair.days_left() < 10.1
    now = time.time_ns()
    assert contexts.expiring(within_days=5) == []
    assert contexts.expiring(within_days=14)[0].endswith("expires in 10 days")
    assert contexts.expiring(now=now + 12 * 86400 * 10**9)[0].endswith("expired 2 days ago")


def test_client_modes(tmp_path: Path) -> None:
    pem, key = make_pair(tmp_path, "mx.example.org")
    contexts = tls.TlsContexts(tls.KeyPair.read(pem, key))
    server = contexts.server
    assert server is not None
    for mode in (tls.OPPORTUNISTIC, tls.REQUIRED):
        handshake(contexts.client(mode), server, "wrong.example.org")
    verify = contexts.client(tls.VERIFY, str(pem))
    assert verify is contexts.client(tls.VERIFY, str(pem))
    handshake(verify, server, "mx.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(verify, server, "wrong.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(contexts.client(tls.VERIFY), server, "mx.example.org")
    with pytest.raises(tls.TlsError):
        contexts.client(tls.VERIFY, str(tmp_path / "absent"))
    with pytest.raises(ValueError):
        contexts.client(tls.OFF)


def test_versions_ciphers_and_description(tmp_path: Path) -> None:
    pair = tls.KeyPair.read(*make_pair(tmp_path, "mx.example.org"))
    contexts = tls.TlsContexts(pair)
    assert contexts.server is not None
    client = contexts.client(tls.OPPORTUNISTIC)
    end, _ = handshake(client, contexts.server)
    version, cipher, bits = tls.describe(end)
    assert version == "TLSv1.3" and cipher.startswith("TLS_") and bits in (128, 256)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert tls.describe(handshake(old, contexts.server)[0])[0] == "TLSv1.2"
    only13 = tls.TlsContexts(pair, options=tls.ServerOptions(minimum_version="1.3")).server
    assert only13 is not None
    with pytest.raises(ssl.SSLError):
        handshake(old, only13)
    with pytest.raises(tls.TlsError):
        tls.TlsContexts(pair, options=tls.ServerOptions(ciphers="NO-SUCH-CIPHER"))
    for suite in contexts.server.get_ciphers():
        assert suite["kea"] in ("kx-any", "kx-ecdhe", "kx-dhe"), suite["name"]  # forward secrecy


def test_tickets_resume_also_over_a_reload(tmp_path: Path) -> None:
    contexts = tls.TlsContexts(tls.KeyPair.read(*make_pair(tmp_path, "mx.example.org")))
    client = contexts.client(tls.REQUIRED)
    assert contexts.server is not None
    first, _ = handshake(client, contexts.server)
    assert contexts.reload() is None
    assert handshake(client, contexts.server, session=first.session)[1].session_reused


def test_client_certificate_is_asked_for_when_configured(tmp_path: Path) -> None:
    pem, key = make_pair(tmp_path, "mx.example.org")
    ca, ca_key = make_pair(tmp_path, "client.example.org")
    options = tls.ServerOptions(client_ca_file=str(ca))
    contexts = tls.TlsContexts(tls.KeyPair.read(pem, key), options=options)
    assert contexts.server is not None
    client = trusting(pem)
    assert handshake(client, contexts.server, "mx.example.org")[1].getpeercert() is None
    client = trusting(pem)
    client.load_cert_chain(ca, ca_key)
    certificate = handshake(client, contexts.server, "mx.example.org")[1].getpeercert()
    assert certificate is not None and certificate["subjectAltName"] == (
        ("DNS", "client.example.org"),
    )


def test_without_certificate_there_is_no_server_context() -> None:
    contexts = tls.TlsContexts()
    assert contexts.server is None
    assert contexts.pairs() == ()
    assert contexts.reload() is None
    contexts.client(tls.OPPORTUNISTIC)


class Echo:
    """Upgrades on the first octets, answers what it reads after that."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.described: tuple[str, str, int] | None = None

    def on_connected(self, connection: Connection) -> None:
        self.connection = connection

    def receive(self, data: bytes) -> None:
        if self.described is None:
            self.connection.write(b"go\n")
            self.task = asyncio.ensure_future(self.upgrade())
            self.described = ("", "", 0)
        else:
            self.connection.write(data)

    async def upgrade(self) -> None:
        await self.connection.start_tls(self.context, server_side=True)
        assert isinstance(self.connection.tls, ssl.SSLObject)
        self.described = tls.describe(self.connection.tls)

    def receive_eof(self) -> None: ...
    def on_closed(self, error: Exception | None) -> None: ...
    def on_deadline(self) -> None: ...
    def on_write_ready(self, ready: bool) -> None: ...


def test_start_tls_on_a_connection_under_uvloop(tmp_path: Path) -> None:
    pem, key = make_pair(tmp_path, "mx.example.org")
    contexts = tls.TlsContexts(tls.KeyPair.read(pem, key))
    assert contexts.server is not None
    handler = Echo(contexts.server)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Connection(handler, DeadlineSweep()), "127.0.0.1", 0
        )
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go\n"
        await writer.start_tls(
            contexts.client(tls.VERIFY, str(pem)), server_hostname="mx.example.org"
        )
        writer.write(b"secret\n")
        assert await reader.readline() == b"secret\n"
        writer.close()
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    assert handler.described is not None and handler.described[0] == "TLSv1.3"

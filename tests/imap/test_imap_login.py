"""CAPABILITY, ID, STARTTLS, AUTHENTICATE, LOGIN, ENABLE, COMPRESS, UNAUTHENTICATE, LOGOUT; PREAUTH."""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accounts_rig import scram_responses
from imap.rig import ALICE, PASSWORD, TLS_CONFIG, ImapClient, ImapGateway

PREAUTH = """
[auth]
mechanisms = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN"]
[[listen]]
service = "imap"
address = "unix:{directory}/imap.sock"
preauth = "alice@example.test"
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Path:
    directory = tmp_path_factory.mktemp("imap")
    for name, path in zip(("tls.pem", "tls.key"), certificate, strict=True):
        (directory / name).write_bytes(path.read_bytes())
        (directory / name).chmod(0o600)
    return directory


@pytest.fixture(scope="module")
def gateway(directory: Path) -> Iterator[ImapGateway]:
    with ImapGateway(directory, (TLS_CONFIG + PREAUTH).replace("{directory}", str(directory))) as running:
        running.add_account(ALICE)
        yield running


@pytest.fixture(scope="module")
def context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


def b64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


PLAIN = b64(b"\0" + ALICE.encode() + b"\0" + PASSWORD.encode())


def test_the_greeting_tells_what_capability_tells(gateway: ImapGateway) -> None:
    with gateway.connect() as imap:
        assert imap.greeting.startswith(b"* OK [CAPABILITY IMAP4rev2 IMAP4rev1 ")
        announced = imap.greeting.partition(b"[")[2].partition(b"]")[0]
        assert imap.ok("CAPABILITY") == [announced]
        words = announced.split()
        assert {b"SASL-IR", b"AUTH=PLAIN", b"AUTH=SCRAM-SHA-256"} <= set(words)
        assert b"STARTTLS" not in words and b"LOGINDISABLED" not in words
        tagged = imap.cmd(f'LOGIN {ALICE} "{PASSWORD}"')[1]
        assert tagged.startswith(b"OK [CAPABILITY ")
        assert imap.ok("CAPABILITY") == [tagged[4:].partition(b"]")[0]]
        assert not any(word.startswith(b"AUTH=") for word in tagged.split())


def test_commands_have_their_states(gateway: ImapGateway) -> None:
    with gateway.connect() as imap:
        for command in ("SELECT INBOX", "LIST \"\" *", "IDLE", "ENABLE CONDSTORE", "FETCH 1 FLAGS", "CLOSE"):
            imap.bad(command)
        imap.bad("NONSENSE")
        imap.ok(f'LOGIN {ALICE} "{PASSWORD}"')
        for command in ("FETCH 1 FLAGS", "EXPUNGE", "CLOSE", "CHECK", "STARTTLS", f"LOGIN {ALICE} x"):
            imap.bad(command)
        imap.ok("NOOP")


def test_logins_fail_with_a_code(gateway: ImapGateway) -> None:
    with gateway.connect() as imap:
        assert b"[AUTHENTICATIONFAILED]" in imap.no(f"LOGIN {ALICE} wrong")
        assert b"[AUTHENTICATIONFAILED]" in imap.no("LOGIN nobody@example.test wrong")
        assert b"[CANNOT]" in imap.no("AUTHENTICATE NONSENSE")
        imap.bad("AUTHENTICATE PLAIN ====")
        imap.bad("AUTHENTICATE PLAIN " + b64(b"no separators"))
        imap.bad("LOGIN onlyname")
        imap.ok(f"AUTHENTICATE PLAIN {PLAIN}")


def test_authenticate_without_initial_response_and_cancelled(gateway: ImapGateway) -> None:
    with gateway.connect() as imap:
        tag = imap.begin("AUTHENTICATE PLAIN")
        assert imap.response() == b"+ "
        imap.write(b"*\r\n")
        assert imap.finish(tag)[1].startswith(b"BAD")
        tag = imap.begin("AUTHENTICATE LOGIN")
        assert imap.response() == b"+ VXNlcm5hbWU6"
        imap.write(b64(ALICE.encode()).encode() + b"\r\n")
        assert imap.response() == b"+ UGFzc3dvcmQ6"
        imap.write(b64(PASSWORD.encode()).encode() + b"\r\n")
        assert imap.finish(tag)[1].startswith(b"OK")


def scram(imap: ImapClient, mechanism: str, **how: Any) -> None:
    tag = imap.begin(f"AUTHENTICATE {mechanism}")
    for respond in scram_responses(ALICE, PASSWORD, **how):
        challenge = base64.b64decode(imap.response().removeprefix(b"+ "))
        octets = respond(challenge) if callable(respond) else respond
        imap.write(base64.b64encode(octets) + b"\r\n")
    assert imap.finish(tag)[1].startswith(b"OK")


def end_point(sock: socket.socket) -> bytes:
    """tls-server-end-point (RFC 5929 §4.1)."""
    assert isinstance(sock, ssl.SSLSocket)
    certificate = sock.getpeercert(binary_form=True)
    assert certificate
    return hashlib.sha256(certificate).digest()


def test_scram(gateway: ImapGateway) -> None:
    with gateway.connect() as imap:
        scram(imap, "SCRAM-SHA-256")


def test_starttls(gateway: ImapGateway, context: ssl.SSLContext) -> None:
    with gateway.connect(gateway.ports[1]) as imap:
        assert b" STARTTLS" in imap.greeting
        imap.ok("STARTTLS")
        imap.start_tls(context)
        assert b"STARTTLS" not in imap.ok("CAPABILITY")[0]
        assert b" AUTH=SCRAM-SHA-256-PLUS " in imap.ok("CAPABILITY")[0]
        imap.bad("STARTTLS")
        binding = end_point(imap.sock)
        scram(imap, "SCRAM-SHA-256-PLUS", flag="p=tls-server-end-point", binding=binding)
        imap.ok("SELECT INBOX")


def test_nothing_sent_before_tls_counts_after_it(gateway: ImapGateway) -> None:
    with gateway.connect(gateway.ports[1]) as imap:
        imap.write(b"a STARTTLS\r\nb LOGIN x y\r\n")
        assert imap.response().startswith(b"a BAD")


def test_implicit_tls(gateway: ImapGateway, context: ssl.SSLContext) -> None:
    with gateway.connect(gateway.ports[2], context) as imap:
        imap.ok(f'LOGIN {ALICE} "{PASSWORD}"')
        assert imap.ok("LOGOUT") == [b"BYE Logging out"]
        with pytest.raises(EOFError):
            imap.response()


def test_id_enable_and_unauthenticate(gateway: ImapGateway) -> None:
    with gateway.login() as imap:
        assert imap.ok('ID ("name" "test" "os" NIL)')[0].startswith(b'ID ("name" "mail-gateway" "version" ')
        assert imap.ok("ID NIL")
        assert imap.ok("ENABLE QRESYNC X-UNKNOWN condstore") == [b"ENABLED QRESYNC"]
        imap.bad("ENABLE")
        imap.ok("SELECT INBOX")
        assert imap.cmd("UNAUTHENTICATE")[1].startswith(b"OK")
        imap.bad("SELECT INBOX")
        imap.ok(f'LOGIN {ALICE} "{PASSWORD}"')
        imap.ok("SELECT INBOX")
        imap.bad("SELECT INBOX (QRESYNC (1 1))")  # it is not enabled any more


def test_compress(gateway: ImapGateway) -> None:
    with gateway.login() as imap:
        imap.bad("COMPRESS LZMA")
        imap.ok("COMPRESS DEFLATE")
        deflate = zlib.compressobj(wbits=-15)
        inflate = zlib.decompressobj(wbits=-15)
        imap.write(deflate.compress(b"x COMPRESS DEFLATE\r\ny NOOP\r\n") + deflate.flush(zlib.Z_SYNC_FLUSH))
        found = b""
        while b"y OK" not in found or not found.endswith(b"\r\n"):
            found += inflate.decompress(imap.sock.recv(65536))
        assert found.startswith(b"x NO [COMPRESSIONACTIVE] ")


def test_unauthenticate_ends_compression(gateway: ImapGateway) -> None:
    """RFC 8437 §4.1: with its own line end on the client's side, with the tagged OK on ours."""
    with gateway.login() as imap:
        for end in (zlib.Z_SYNC_FLUSH, zlib.Z_FINISH):
            imap.ok("COMPRESS DEFLATE")
            deflate, inflate = zlib.compressobj(wbits=-15), zlib.decompressobj(wbits=-15)
            imap.write(deflate.compress(b"x SELECT INBOX\r\ny UNAUTHENTICATE\r\n") + deflate.flush(end))
            found = b""
            while not found.endswith(b"y OK Completed\r\n"):
                found += inflate.decompress(imap.sock.recv(65536))
            imap.bad("SELECT INBOX")
            imap.ok(f'LOGIN {ALICE} "{PASSWORD}"')
            imap.ok("ID NIL")


def test_a_unix_socket_may_need_no_login(gateway: ImapGateway, directory: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(str(directory / "imap.sock"))
    imap = ImapClient.__new__(ImapClient)
    imap.begin_on(sock)
    with imap:
        assert imap.greeting.startswith(b"* PREAUTH [CAPABILITY ")
        imap.bad("LOGIN a b")
        imap.ok("SELECT INBOX")


def test_too_many_errors_end_the_session(gateway: ImapGateway) -> None:
    with gateway.connect() as imap, pytest.raises((EOFError, ConnectionError)):
        for _ in range(200):
            imap.bad("NONSENSE")


def test_octets_that_are_no_command_end_nothing(gateway: ImapGateway) -> None:
    with gateway.login() as imap:
        for octets in (b"\r\n", b"a\r\n", b"\0\r\n"):
            imap.write(octets)
            assert b" BAD " in imap.response()
        imap.ok("NOOP")

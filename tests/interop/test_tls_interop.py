"""openssl s_client against the gateway: versions, SNI, resumption, reload, and what is refused."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from interop_peers import RunningGateway, listener, need, route, wait_for


def make_certificate(where: Path, name: str) -> tuple[Path, Path]:
    pem, key = where / f"{name}.pem", where / f"{name}.key"
    subprocess.run(
        [
            need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", str(key), "-out", str(pem), "-days", "30", "-subj", f"/CN={name}",
            "-addext", f"subjectAltName=DNS:{name}",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return pem, key


def s_client(port: int, *words: str, starttls: bool = True, send: str = "QUIT\r\n") -> str:
    """What openssl prints; the session ends with QUIT."""
    done = subprocess.run(
        [need("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-ign_eof", *words]
        + (["-starttls", "smtp"] if starttls else []),
        input=send,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def make_gateway(where: Path, certificate: tuple[Path, Path]) -> RunningGateway:
    default = [str(shutil.copy(path, where / path.name)) for path in certificate]
    other = make_certificate(where, "mail.example.net")
    return RunningGateway(
        where,
        {
            "listen": [listener(tls="starttls"), listener(tls="implicit")],
            "route": [route("discard:")],
            "tls": {"certificate": default[0], "key": default[1]},
            "tls.sni": [{"certificate": str(other[0]), "key": str(other[1])}],
        },
    )


@pytest.fixture(scope="module")
def gateway(
    certificate: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    running = make_gateway(tmp_path_factory.mktemp("gateway"), certificate)
    yield running
    running.kill()


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
@pytest.mark.parametrize("version", ["1_2", "1_3"])
def test_versions(gateway: RunningGateway, implicit: bool, version: str) -> None:
    out = s_client(gateway.ports[implicit], f"-tls{version}", starttls=not implicit)
    assert f"TLSv{version.replace('_', '.')}" in out
    assert "221 2.0.0" in out
    assert "Compression: NONE" in out
    assert "Server Temp Key: X25519" in out or "Server Temp Key: ECDH" in out


def test_old_versions_and_ciphers_without_forward_secrecy_are_refused(
    gateway: RunningGateway,
) -> None:
    for words in (
        ("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "AES128-SHA:AES256-SHA256:AES128-GCM-SHA256"),
        ("-tls1_2", "-cipher", "NULL:aNULL:@SECLEVEL=0"),
    ):
        out = s_client(gateway.port, *words)
        assert "221 2.0.0" not in out, words
        assert "Cipher is (NONE)" in out, words
    assert "221 2.0.0" in s_client(gateway.port)  # it serves on


def test_renegotiation_is_refused(gateway: RunningGateway) -> None:
    raw = subprocess.run(  # without -ign_eof, "R" is a command of s_client
        [need("openssl"), "s_client", "-connect", f"127.0.0.1:{gateway.ports[1]}", "-tls1_2"],
        input="R\nNOOP\r\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "no renegotiation" in raw.stdout + raw.stderr


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("mail.example.net", "mail.example.net"),
        ("MAIL.example.NET", "mail.example.net"),
        ("mx.example.test", "mx.example.test"),
        ("nobody.example", "mx.example.test"),
    ],
)
def test_sni(gateway: RunningGateway, name: str, served: str) -> None:
    out = s_client(gateway.port, "-servername", name)
    assert re.search(rf"subject=CN ?= ?{re.escape(served)}\n", out), out


def test_without_sni_the_default_is_served(gateway: RunningGateway) -> None:
    assert re.search(r"subject=CN ?= ?mx\.example\.test\n", s_client(gateway.port, "-noservername"))


@pytest.mark.parametrize("version", ["1_2", "1_3"])
def test_a_session_is_resumed(gateway: RunningGateway, tmp_path: Path, version: str) -> None:
    session = str(tmp_path / "session")
    first = s_client(gateway.port, f"-tls{version}", "-sess_out", session)
    assert "New, TLSv" in first
    assert "Reused, TLSv" in s_client(gateway.port, f"-tls{version}", "-sess_in", session)


def served_certificate(port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20)) as sock:
        found = sock.getpeercert(True)
    assert found is not None
    return found


@pytest.fixture
def own_gateway(certificate: tuple[Path, Path], tmp_path: Path) -> Iterator[RunningGateway]:
    running = make_gateway(tmp_path, certificate)
    yield running
    running.kill()


def test_sighup_serves_the_new_certificate_and_a_bad_one_changes_nothing(
    own_gateway: RunningGateway, tmp_path: Path
) -> None:
    gateway = own_gateway
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    port = gateway.ports[1]
    old = served_certificate(port)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20)) as standing:
        replies = standing.makefile("rb")
        assert replies.readline().startswith(b"220")
        fresh = make_certificate(tmp_path, "mx2.example.test")
        shutil.copy(fresh[0], tmp_path / "tls.pem")  # the key does not belong to it yet
        gateway.process.send_signal(signal.SIGHUP)
        wait_for(
            lambda: any(
                "tls.pem" in str(e) or "key" in str(e)
                for e in gateway.log()
                if e["level"] in ("error", "warning")
            ),
            "the complaint in the log",
        )
        assert served_certificate(port) == old
        shutil.copy(fresh[1], tmp_path / "tls.key")
        gateway.process.send_signal(signal.SIGHUP)
        wait_for(lambda: served_certificate(port) != old, "the new certificate")
        standing.sendall(b"NOOP\r\n")
        assert replies.readline().startswith(b"250")


def test_octets_behind_starttls_are_refused(gateway: RunningGateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), 20) as sock:
        replies = sock.makefile("rb")
        assert replies.readline().startswith(b"220")
        sock.sendall(b"EHLO client.example.test\r\n")
        while not replies.readline().startswith(b"250 "):
            pass
        sock.sendall(b"STARTTLS\r\nMAIL FROM:<evil@example.test>\r\n")
        answer = replies.read()  # RFC 3207 §6
        assert not answer.startswith(b"220") and b"250" not in answer

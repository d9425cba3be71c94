"""Debian's haproxy in front: what it says about clients, in every form it can say it."""

from __future__ import annotations

import contextlib
import smtplib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from interop_peers import RunningGateway, free_port, listener, listening, need, route, wait_for

from gateway.net.proxy_header import ProxyHeader, parse

CLIENT = "127.0.0.2"  # who connects to haproxy; haproxy itself comes from 127.0.0.1

Haproxy = Callable[..., int]


@pytest.fixture
def haproxy(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[Haproxy]:
    """haproxy(port, "server options", bind="bind options"): the port it listens on."""
    program = need("haproxy")
    running: list[subprocess.Popen[bytes]] = []
    pair = tmp_path / "haproxy.pem"
    pair.write_bytes(certificate[0].read_bytes() + certificate[1].read_bytes())

    def make(to_port: int, options: str, bind: str = "") -> int:
        port = free_port()
        config = tmp_path / f"haproxy-{port}.cfg"
        config.write_text(
            "global\n    maxconn 100\n"
            "defaults\n    mode tcp\n"
            "    timeout connect 5s\n    timeout client 30s\n    timeout server 30s\n"
            f"frontend f\n    bind 127.0.0.1:{port} {bind.format(pair=pair)}\n"
            "    default_backend b\n"
            f"backend b\n    server s 127.0.0.1:{to_port} {options}\n"
        )
        running.append(
            subprocess.Popen(
                [program, "-db", "-f", str(config)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        wait_for(lambda: listening(port), "haproxy")
        return port

    yield make
    for process in running:
        process.kill()
        process.wait()


class Reader:
    """Parses the header of each connection as its octets come, and gives back what follows."""

    def __init__(self) -> None:
        self.headers: list[ProxyHeader] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):  # probes are reset
                self._talk(sock)

    def _talk(self, sock: socket.socket) -> None:
        sock.settimeout(60)
        data = b""
        while (header := parse(data)) is None:
            received = sock.recv(7)  # pieces, to meet it in the middle
            if not received:
                return
            data += received
        self.headers.append(header)
        rest = data[header.consumed :]
        while rest or (rest := sock.recv(65536)):
            sock.sendall(rest)
            rest = b""

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


@pytest.fixture
def reader() -> Iterator[Reader]:
    server = Reader()
    yield server
    server.close()


def exchange(port: int, tls: ssl.SSLContext | None = None) -> tuple[str, int]:
    """Sends octets through haproxy, expects them back; the client's own address."""
    raw = socket.create_connection(("127.0.0.1", port), 10, source_address=(CLIENT, 0))
    own = raw.getsockname()
    sock = raw if tls is None else tls.wrap_socket(raw)
    with sock:
        sock.sendall(b"EHLO client\r\n")
        with sock.makefile("rb") as back:
            assert back.read(13) == b"EHLO client\r\n"
    return str(own[0]), int(own[1])


@pytest.mark.parametrize(
    "options",
    [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
        "send-proxy-v2-ssl-cn",
    ],
)
def test_the_client_is_told(haproxy: Haproxy, reader: Reader, options: str) -> None:
    port = haproxy(reader.port, options)
    client = exchange(port)
    header = next(h for h in reader.headers if h.source is not None and h.source[0] == CLIENT)
    assert header.source == client
    assert header.destination == ("127.0.0.1", port)
    assert not header.local and header.tls is None


def test_the_tls_that_haproxy_ended_is_told(haproxy: Haproxy, reader: Reader) -> None:
    options = "send-proxy-v2-ssl proxy-v2-options ssl,cert-cn,ssl-cipher,crc32c"
    port = haproxy(reader.port, options, bind="ssl crt {pair}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    exchange(port, context)
    header = next(h for h in reader.headers if h.source is not None and h.source[0] == CLIENT)
    assert header.tls is not None
    assert header.tls.version == "TLSv1.3"
    assert header.tls.cipher.startswith("TLS_")
    assert not header.tls.client_verified


def test_health_checks_speak_for_haproxy_itself(haproxy: Haproxy, reader: Reader) -> None:
    haproxy(reader.port, "send-proxy-v2 check inter 100ms")
    wait_for(lambda: any(h.local for h in reader.headers), "a health check")
    header = next(h for h in reader.headers if h.local)
    assert header == ProxyHeader(None, None, True, 16)


@pytest.fixture
def gateway(gateway_factory, sink) -> RunningGateway:
    trusted = {"proxy_protocol": ["127.0.0.0/8"]}
    return gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")],
        [
            listener(tls="starttls", **trusted),
            listener(tls="implicit", **trusted),
        ],
        access={"relay_from": ["127.0.0.2/32"]},
    )


@pytest.mark.parametrize("options", ["send-proxy", "send-proxy-v2 proxy-v2-options crc32c"])
@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
def test_the_gateway_knows_the_client(
    haproxy: Haproxy, gateway: RunningGateway, sink, options: str, implicit: bool
) -> None:
    port = haproxy(gateway.ports[implicit], options)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if implicit:
        client: smtplib.SMTP = smtplib.SMTP_SSL(
            "127.0.0.1", port, source_address=(CLIENT, 0), context=context, timeout=60
        )
    else:
        client = smtplib.SMTP("127.0.0.1", port, source_address=(CLIENT, 0), timeout=60)
        client.starttls(context=context)
    with client:
        assert client.sock is not None
        own = client.sock.getsockname()
        client.sendmail("a@example.test", ["b@example.test"], "Subject: x\r\n\r\nbody\r\n")
    receipt = sink.wait()[0]
    assert f"[{CLIENT}]".encode() in receipt.content
    assert any(f"{CLIENT}:{own[1]}" in str(entry) for entry in gateway.log())


def test_without_a_header_the_gateway_says_nothing(gateway: RunningGateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), 20) as sock:
        sock.sendall(b"EHLO client.example.test\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""

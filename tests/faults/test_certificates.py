"""TLS that is broken: certificates of the next hop and our own, handshakes that stall.

Standards RFC 3207, RFC 7435 §3, RFC 8314; RFC 5280 §6.1
"""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path

import pytest
from e2e.rig import CLOSE, DROP, Sender, Session, route, without_received
from e2e.test_outgoing_tls import NAME, Authority
from fault_world import BOB, CONTENT, TIMEOUTS, Gateway, World, metric, shown, wait_until
from gateway_tools import run

KINDS = {"expired": "expired", "wrong name": "mismatch", "untrusted": "self"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def certificate_of(kind: str) -> str:
    return "self-signed" if kind == "untrusted" else kind


def gateway_to(world: World, url: str, mode: str, authority: Authority, *more: str) -> Gateway:
    settings = {"tls_name": NAME} if mode == "verify" else {}
    return world.gateway_to(url, f'[tls]\nca_file = "{authority.file}"\n', *more, tls=mode, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["opportunistic", "required"])
def test_bad_certificate(world: World, authority: Authority, mode: str, kind: str) -> None:
    """The next hop's certificate is expired, for another name or from nobody we trust; tls = opportunistic or required.

    Client   250, the mail is ours
    Queue    goes on: these two do not look at the certificate (RFC 7435)
    Shown    relayed, with the TLS version and cipher
    Arrives  at once, under TLS
    """
    hop = world.hop(tls=authority.server(certificate_of(kind)))
    gateway = gateway_to(world, hop.url, mode, authority)
    gateway.send(CONTENT)
    assert hop.wait()[0].tls
    assert gateway.wait_for("relayed")[0]["tls"].startswith("TLS")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_certificate_verify(world: World, authority: Authority, kind: str) -> None:
    """The next hop's certificate is expired, for another name or from nobody we trust; tls = verify.

    Client   250, the mail is ours
    Queue    the lane is down: nothing is sent, neither like this nor in clear
    Shown    lane_down 4.7.5 with the reason; gateway_lane_up 0; queue list
    Arrives  with the first connection after the certificate was put right; else the report after queue.expire_s
    """
    hop = world.hop(tls=authority.server(certificate_of(kind)))
    gateway = gateway_to(world, hop.url, "verify", authority)
    queue_id = gateway.send(CONTENT)
    assert KINDS[kind] in gateway.wait_for("lane_down")[0]["reply"]
    assert shown(gateway, queue_id)["reply"].startswith("4.7.5 TLS handshake failed")
    assert metric(gateway, "gateway_lane_up", next_hop=hop.url) == 0.0
    assert not hop.said("MAIL")
    hop.tls = authority.server("good")
    assert hop.wait()[0].tls
    gateway.wait_empty()


def stall(session: Session, _argument: str) -> str | None:
    """220, and then nothing: the handshake never begins."""
    session.sock.sendall(b"220 2.0.0 ready\r\n")
    while session.sock.recv(65536):
        pass
    return CLOSE


def silence(session: Session, _argument: str) -> str | None:
    while session.sock.recv(65536):
        pass
    return CLOSE


def close_after(session: Session, _argument: str) -> str | None:
    """220, and then good-bye."""
    session.sock.sendall(b"220 2.0.0 ready\r\n")
    return DROP


HOW = {"no reply": silence, "stall": stall, "reset": DROP, "close": CLOSE, "reset behind 220": close_after}


@pytest.mark.usefixtures("quick_sweep")
@pytest.mark.parametrize("how", HOW)
def test_starttls_breaks(world: World, authority: Authority, how: str) -> None:
    """The next hop offers STARTTLS, and then hangs up, stalls, or stops in the handshake; tls = opportunistic.

    Client   250, the mail is ours
    Queue    the same address again in clear, at once (after delivery.tls_handshake_s, if it stalls); remembered for
             delivery.avoid_tls_s (5 min), when clear works
    Shown    relayed without TLS; a log line that TLS is broken there, and why
    Arrives  at once, in clear; under TLS again as soon as it works
    """
    hop = world.hop(tls=authority.server("good"), replies={"STARTTLS": HOW[how]})
    gateway = gateway_to(world, hop.url, "opportunistic", authority, TIMEOUTS.format(0.3), "avoid_tls_s = 1.0\n")
    gateway.send(CONTENT)
    assert not hop.wait()[0].tls
    assert gateway.wait_for("relayed")[0]["tls"] == ""
    assert any("TLS is broken there" in str(line.get("message")) for line in gateway.log())
    assert not gateway.events("lane_down")
    hop.hang_up()
    gateway.send(CONTENT)
    hop.wait(2)
    assert len(hop.said("STARTTLS")) == 1  # not asked for again so soon
    hop.replies.clear()

    def healed() -> bool:
        hop.hang_up()
        gateway.send(CONTENT)
        gateway.wait_empty()
        return hop.received[-1].tls

    wait_until(healed, "TLS again")


@pytest.mark.usefixtures("quick_sweep")
@pytest.mark.parametrize("how", ["stall", "reset"])
@pytest.mark.parametrize("mode", ["required", "verify"])
def test_starttls_breaks_required(world: World, authority: Authority, mode: str, how: str) -> None:
    """The same with tls = required or verify.

    Client   250, the mail is ours
    Queue    the lane is down; nothing is ever sent in clear
    Shown    lane_down 4.7.5 "TLS handshake failed"; gateway_lane_up 0
    Arrives  with the first connection on which TLS works
    """
    hop = world.hop(tls=authority.server("good"), replies={"STARTTLS": HOW[how]})
    gateway = gateway_to(world, hop.url, mode, authority, TIMEOUTS.format(0.3))
    queue_id = gateway.send(CONTENT)
    gateway.wait_for("lane_down", 2)
    assert "4.7.5 TLS handshake failed" in shown(gateway, queue_id)["reply"]
    assert not hop.said("MAIL")
    hop.replies.clear()
    assert hop.wait()[0].tls


def test_not_even_in_clear(world: World, authority: Authority) -> None:
    """STARTTLS breaks because the whole next hop does; tls = opportunistic.

    Client   250, the mail is ours
    Queue    the lane is down; nothing is remembered against TLS
    Shown    lane_down
    Arrives  with the first connection, under TLS
    """
    hop = world.hop(tls=authority.server("good"))
    hop.replies["STARTTLS"] = lambda *_: DROP if len(hop.clients) == 1 else None
    hop.replies["EHLO"] = lambda *_: DROP if len(hop.clients) == 2 else None
    gateway = gateway_to(world, hop.url, "opportunistic", authority)
    gateway.send(CONTENT, BOB)
    gateway.wait_for("lane_down")
    mail = hop.wait()[0]
    assert mail.tls
    assert without_received(mail.content) == CONTENT


# -- ours --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["expired", "good"])
def test_our_certificate(tmp_path: Path, authority: Authority, kind: str) -> None:
    """Our own certificate has expired, or soon will.

    Client   the certificate, which it may refuse; most servers' opportunistic TLS does not
    Queue    nothing
    Shown    gateway check and the start of gateway serve warn 14 days before, naming key and file; the metric
             gateway_certificate_expires_seconds
    Arrives  as ever
    """
    authority.server(kind)  # good: for two more days
    file = authority.directory / f"{kind}.pem"
    config = tmp_path / "edge.toml"
    config.write_text(
        f'hostname = "mx.example.test"\nstate_dir = "{tmp_path}"\n'
        f'[tls]\ncertificate = "{file}"\nkey = "{file}"\n'
        '[[listen]]\nservice = "smtp"\naddress = "127.0.0.1:0"\ntls = "starttls"\n'
        + route("discard:", "rcpt.test", source_addresses=["127.0.0.9", "192.0.2.77"])
    )
    done = run(None, "check", "--json", config=config)
    assert done.code == 0
    warnings = done.json()["warnings"]
    wanted = "expired 1 days ago" if kind == "expired" else "expires in 2 days"
    assert [w for w in warnings if w.startswith(f"tls.certificate: {file} {wanted}")], warnings
    assert [w for w in warnings if w.startswith("route[0].source_addresses: 192.0.2.77 is not up")], warnings
    assert "127.0.0.9" not in json.dumps(warnings)
    if kind == "expired":
        assert "warning: route[0].source_addresses" in run(None, "check", config=config).error


@pytest.mark.parametrize("how", ["reset", "stall"])
def test_client_breaks(world: World, certificate: tuple[Path, Path], how: str) -> None:
    """A client says STARTTLS and is gone, or never begins the handshake.

    Client   220, and the connection ends (after limits.tls_handshake_s, if it stalls)
    Queue    nothing
    Shown    gateway_sessions_open goes back; other sessions do not notice
    Arrives  -
    """
    listen = '[[listen]]\nservice = "smtp"\naddress = "127.0.0.1:PORT"\ntls = "starttls"\n'
    tls = f'[tls]\ncertificate = "{certificate[0]}"\nkey = "{certificate[1]}"\n'
    gateway = world.gateway(
        route("discard:", "rcpt.test"), listen=listen, extra=f"{tls}[limits]\ntls_handshake_s = 1.0\n"
    )
    senders = []
    for _ in range(20):
        sender = Sender(gateway.port)
        sender.send(b"STARTTLS\r\n")
        if how == "reset":
            sender.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sender.sock.close()
        else:
            senders.append(sender)
    gateway.send(CONTENT)
    wait_until(lambda: gateway.worker.metrics.sessions_open == 0, "the end of the sessions")
    for sender in senders:
        sender.sock.close()

"""What a next hop gets when it takes less than the sender sent: the same message, or none.

Standards RFC 5321 §4.5.2, RFC 1870 §6, RFC 3030, RFC 6152 §3, RFC 6531 §3, RFC 1847 §2.1
"""

from __future__ import annotations

import random
from email import message_from_bytes
from email.message import Message

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from e2e.rig import (
    PLAIN,
    Gateway,
    Lab,
    NextHop,
    Sender,
    route,
    wait_until,
    without_received,
)
from harness import free_port

BINARY = bytes(range(256)) * 3

PARTS = [
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    + "Grüße\r\n.punkt\r\n-- \r\nÄÖÜ".encode(),
    b"Content-Type: text/plain; charset=iso-8859-1\r\n\r\nsm\xf8rrebr\xf8d = 1  \r\n \xe6",
    b"Content-Type: text/html; charset=us-ascii\r\n\r\n<p>plain</p>",
    b"Content-Type: application/pdf\r\nContent-Transfer-Encoding: 8bit\r\n\r\n%PDF\xff\xfe\r\n\x80",
    b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\niVBORw0KGgo=",
    b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b"Subject: inner\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n\r\n" + "innen ö".encode(),
]


def multipart(parts: list[bytes], kind: bytes = b"mixed", encoding: bytes = b"8bit") -> bytes:
    body = b"".join(b"--cut\r\n" + part + b"\r\n" for part in parts)
    return (
        b"From: a@sender.test\r\nSubject: 8 bit\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/%s; boundary="cut"\r\nContent-Transfer-Encoding: %s\r\n\r\n'
        % (kind, encoding)
        + b"preamble\r\n"
        + body
        + b"--cut--\r\nepilogue\r\n"
    )


def leaves(content: bytes) -> list[tuple[str, str, bytes]]:
    """(type, charset, decoded octets) of each leaf."""

    def leaf(part: Message) -> tuple[str, str, bytes]:
        octets = part.get_payload(decode=True)
        assert isinstance(octets, bytes)
        return part.get_content_type(), str(part.get_content_charset()), octets

    message = message_from_bytes(content)
    return [leaf(part) for part in message.walk() if not part.is_multipart()]


def bounced(gateway: Gateway, queue_id: str) -> dict[str, object]:
    """The log line of the bounce."""
    wait_until(lambda: gateway.events("bounced", queue_id), f"{queue_id} to bounce")
    return gateway.events("bounced", queue_id)[0]


def only(*words: str) -> tuple[str, ...]:
    return (*PLAIN, *words)


# -- 8 bit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filler", [0, 70_000, 300_000], ids=["small", "off the loop", "from disk"])
@pytest.mark.parametrize("offers", [PLAIN, only("CHUNKING"), ()], ids=["DATA", "BDAT", "old"])
def test_8bit_becomes_7bit_and_every_leaf_stays(
    lab: Lab, offers: tuple[str, ...], filler: int
) -> None:
    """RFC 6152 §3: a conversion, and one that loses nothing."""
    hop = lab.hop(offers)
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    chance = random.Random(filler)
    text = "\r\n".join("äöü" * chance.randrange(20) for _ in range(filler // 60)).encode()
    parts = [*PARTS, b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + text]
    content = multipart(parts)
    gateway.send(content, mail="BODY=8BITMIME")
    mail = hop.wait()[0]
    assert mail.content.isascii()
    assert mail.content.count(b"\r\n") == mail.content.count(b"\n")
    assert max(map(len, mail.content.split(b"\r\n"))) <= 998
    assert leaves(mail.content) == leaves(content)
    assert b"8bit" not in mail.content
    assert "BODY" not in mail.mail
    gateway.wait_empty()


def test_8bit_stays_8bit_where_it_may(lab: Lab) -> None:
    hop = lab.hop(only("8BITMIME"))
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    content = multipart(PARTS)
    for mail in ("BODY=8BITMIME", ""):  # many senders do not announce it
        gateway.send(content, mail=mail)
    for got in hop.wait(2):
        assert got.body == content
        assert "BODY=8BITMIME" in got.mail


def test_a_real_receiver_of_7_bits(lab: Lab) -> None:
    """aiosmtpd with decode_data offers no 8BITMIME, and decodes as ASCII."""
    seen: list[tuple[Envelope, Session]] = []

    class Handler:
        async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
            seen.append((envelope, session))
            return "250 ok"

    port = free_port()
    controller = Controller(
        Handler(), hostname="127.0.0.1", port=port, decode_data=True, enable_SMTPUTF8=False
    )
    controller.start()
    try:
        gateway = lab.gateway(route(f"smtp://127.0.0.1:{port}", "rcpt.test"))
        content = multipart(PARTS)
        gateway.send(content, mail="BODY=8BITMIME")
        wait_until(lambda: seen, "aiosmtpd")
        received = seen[0][0].content
        assert isinstance(received, str)
        assert leaves(received.encode("ascii")) == leaves(content)
    finally:
        controller.stop()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (multipart(PARTS[:1], b"signed"), "signed"),
        (multipart(PARTS[:2], b"encrypted"), "encrypted"),
        ("Subject: Grüße\r\n\r\nplain\r\n".encode(), "header"),
        (
            b"MIME-Version: 1.0\r\nContent-Type: message/partial; id=1; number=1\r\n\r\n\xe4\r\n",
            "partial",
        ),
        (multipart([b"Content-Transfer-Encoding: x-uuencode\r\n\r\n\xff"]), "unknown encoding"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_converted_is_bounced(lab: Lab, content: bytes, why: str) -> None:
    """RFC 6152 §3: else the message is returned; RFC 1847 §2.1: signed parts are opaque."""
    hop, back = lab.hop(PLAIN), lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"))
    queue_id = gateway.send(content, mail="BODY=8BITMIME")
    assert bounced(gateway, queue_id)["enhanced"] == "5.6.3"
    report = back.wait()[0]
    assert b"Status: 5.6.3" in report.content
    assert not hop.said("MAIL")
    gateway.wait_empty()


def test_a_signature_in_7_bits_is_left_alone(lab: Lab) -> None:
    """Only the part outside of what is signed changes."""
    hop = lab.hop(PLAIN)
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    signed = multipart(
        [PARTS[2], b"Content-Type: application/pgp-signature\r\n\r\nsig"], b"signed", b"7bit"
    )
    inner = b"Content-Type: message/rfc822\r\n\r\n" + signed.replace(b"--cut", b"--in").replace(
        b'"cut"', b'"in"'
    )
    content = multipart([inner, PARTS[0]])
    gateway.send(content, mail="BODY=8BITMIME")
    got = hop.wait()[0].content
    assert inner in got
    assert got.isascii()
    assert leaves(got) == leaves(content)


# -- UTF-8 in addresses and headers ------------------------------------------------------------------------------------


def send_utf8(
    gateway: Gateway, rcpt: str, content: bytes, sender: str = "alice@sender.test"
) -> str:
    with Sender(gateway.port) as client:
        client.send(f"MAIL FROM:<{sender}> SMTPUTF8 BODY=8BITMIME\r\n".encode())
        assert client.code() == 250
        client.send(f"RCPT TO:<{rcpt}>\r\n".encode())
        assert client.code() == 250
        client.command("DATA")
        client.send(content + b".\r\n")
        reply = client.reply()[-1]
    assert reply.startswith("250"), reply
    return reply.partition("queued as ")[2].partition(" ")[0]


UTF8_HEADER = "Subject: Grüße\r\n\r\nbody\r\n".encode()
UTF8_PART = multipart(
    ["Content-Type: text/plain\r\nContent-Description: Grüße\r\n\r\nbody".encode()]
)
UTF8_INSIDE = multipart(["Content-Type: message/rfc822\r\n\r\nSubject: Grüße\r\n\r\nx".encode()])
ASCII = b"Subject: x\r\n\r\nbody\r\n"


@pytest.mark.parametrize(
    ("sender", "rcpt", "content", "status"),
    [
        ("alice@sender.test", "žofie@rcpt.test", ASCII, "5.6.7"),
        ("jürgen@sender.test", "bob@rcpt.test", ASCII, "5.6.7"),
        ("alice@sender.test", "bob@rcpt.test", UTF8_HEADER, "5.6.9"),
        ("alice@sender.test", "bob@rcpt.test", UTF8_PART, "5.6.9"),
        ("alice@sender.test", "bob@rcpt.test", UTF8_INSIDE, "5.6.9"),
    ],
)
@pytest.mark.parametrize("offers", [PLAIN, only("8BITMIME", "CHUNKING")], ids=["plain", "8BITMIME"])
def test_utf8_needs_smtputf8(
    lab: Lab, offers: tuple[str, ...], sender: str, rcpt: str, content: bytes, status: str
) -> None:
    """RFC 6531 §3.2, RFC 5248 X.6.7 and X.6.9."""
    hop, back = lab.hop(offers), lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"))
    queue_id = send_utf8(gateway, rcpt, content, sender)
    assert bounced(gateway, queue_id)["enhanced"] == status
    assert not hop.said("MAIL")
    assert f"Status: {status}".encode() in back.wait()[0].content
    gateway.wait_empty()


def test_one_recipient_in_utf8_does_not_stop_the_others(lab: Lab) -> None:
    hop, back = lab.hop(PLAIN), lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"))
    with Sender(gateway.port) as client:
        client.command("MAIL FROM:<alice@sender.test> SMTPUTF8")
        for rcpt in ("bob@rcpt.test", "žofie@rcpt.test", "eve@rcpt.test"):
            client.send(f"RCPT TO:<{rcpt}>\r\n".encode())
            assert client.code() == 250
        client.command("DATA")
        client.send(ASCII + b".\r\n")
        assert client.code() == 250
    assert hop.wait()[0].to == ["bob@rcpt.test", "eve@rcpt.test"]
    report = back.wait()[0].content
    assert report.count(b"Final-Recipient:") == 1
    assert b"5.6.7" in report


def test_utf8_passes_where_it_is_offered_and_where_it_is_not_needed(lab: Lab) -> None:
    able, plain = lab.hop(), lab.hop(only("8BITMIME"))
    gateway = lab.gateway(
        route(able.url, "able.test"), route(plain.url, "plain.test", "bücher.test")
    )
    send_utf8(gateway, "žofie@able.test", UTF8_HEADER)
    mail = able.wait()[0]
    assert mail.to == ["žofie@able.test"]
    assert "SMTPUTF8" in mail.mail
    assert mail.body == UTF8_HEADER
    assert b"with UTF8SMTP" in mail.content
    send_utf8(gateway, "bob@plain.test", ASCII)  # asked for, and not needed
    mail = plain.wait()[0]
    assert "SMTPUTF8" not in mail.mail
    assert mail.body == ASCII
    send_utf8(gateway, "bob@bücher.test", ASCII)  # RFC 5890: a domain has an ASCII form
    assert plain.wait(2)[1].to == ["bob@xn--bcher-kva.test"]


@pytest.mark.parametrize("orcpt", ["utf-8;\\x{17E}ofie@old.test", "utf-8;žofie@old.test"])
def test_an_original_recipient_in_utf8(lab: Lab, orcpt: str) -> None:
    """RFC 6533 §3: passed on as utf-8-addr-xtext, which every server that offers DSN can take."""
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    with Sender(gateway.port) as client:
        client.command("MAIL FROM:<alice@sender.test> SMTPUTF8")
        client.send(f"RCPT TO:<bob@rcpt.test> ORCPT={orcpt}\r\n".encode())
        assert client.code() == 250
        client.command("DATA")
        client.send(ASCII + b".\r\n")
        assert client.code() == 250
    assert hop.wait()[0].rcpts == ["<bob@rcpt.test> ORCPT=utf-8;\\x{17E}ofie@old.test"]


# -- BINARYMIME --------------------------------------------------------------------------------------------------------

BINARY_MESSAGE = multipart(
    [
        b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        + BINARY,
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        b"bare\nline\rends\r\n.dot\r\n" + b"x" * 2000 + "ü".encode(),
    ],
    encoding=b"binary",
)


@pytest.mark.parametrize("chunk", [100, 10**6])
def test_binary_passes_verbatim_where_it_may(lab: Lab, chunk: int) -> None:
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    gateway.send(BINARY_MESSAGE, mail="BODY=BINARYMIME", bdat=chunk)
    mail = hop.wait()[0]
    assert mail.bdat
    assert "BODY=BINARYMIME" in mail.mail
    assert mail.body == BINARY_MESSAGE


@pytest.mark.parametrize(
    "offers",
    [PLAIN, only("8BITMIME"), only("CHUNKING"), only("CHUNKING", "8BITMIME")],
    ids=["7-bit DATA", "8-bit DATA", "7-bit BDAT", "8-bit BDAT"],
)
def test_binary_is_converted_where_it_may_not(lab: Lab, offers: tuple[str, ...]) -> None:
    """RFC 3030 §3: the server MUST encode it or return it."""
    hop = lab.hop(offers)
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    gateway.send(BINARY_MESSAGE, mail="BODY=BINARYMIME", bdat=10**6)
    mail = hop.wait()[0]
    assert mail.bdat == ("CHUNKING" in offers)
    assert "BINARY" not in mail.mail
    content = mail.body
    assert b"\0" not in content
    assert content.count(b"\n") == content.count(b"\r\n") == content.count(b"\r")
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert leaves(content) == leaves(BINARY_MESSAGE)
    if "8BITMIME" not in offers:
        assert content.isascii()


def test_binary_that_is_signed_is_bounced(lab: Lab) -> None:
    hop, back = lab.hop(only("CHUNKING", "8BITMIME")), lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"))
    content = BINARY_MESSAGE.replace(b"multipart/mixed", b"multipart/signed")
    queue_id = gateway.send(content, mail="BODY=BINARYMIME", bdat=10**6)
    assert bounced(gateway, queue_id)["enhanced"] == "5.6.3"
    assert b"Status: 5.6.3" in back.wait()[0].content
    assert not hop.said("MAIL")


def test_binarymime_that_is_not_binary_needs_no_conversion(lab: Lab) -> None:
    hop = lab.hop(only("8BITMIME"))
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    gateway.send(ASCII, mail="BODY=BINARYMIME", bdat=10)
    assert hop.wait()[0].body == ASCII


# -- SIZE --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["declared", "at MAIL"])
def test_a_message_larger_than_the_next_hop_takes(lab: Lab, where: str) -> None:
    """RFC 1870 §6.1, §6.2: no octet of it is sent."""
    offers = only("SIZE 1000") if where == "declared" else only("SIZE")
    hop = lab.hop(offers, {} if where == "declared" else {"MAIL": "552 5.3.4 too big"})
    back = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"), route(back.url, "sender.test"))
    queue_id = gateway.send(b"Subject: big\r\n\r\n" + b"x" * 70 * 20 + b"\r\n")
    assert bounced(gateway, queue_id)["enhanced"] == "5.3.4"
    assert b"Status: 5.3.4" in back.wait()[0].content
    said = hop.said("MAIL")
    if where == "declared":
        assert not said
    else:
        announced = int(said[0].partition("SIZE=")[2].split()[0])
        assert announced > 1400
    assert not hop.received


def test_the_size_that_is_announced_is_the_size_that_is_sent(lab: Lab) -> None:
    hop = lab.hop()
    gateway = lab.gateway(route(hop.url, "rcpt.test"))
    gateway.send(ASCII)
    mail = hop.wait()[0]
    assert f"SIZE={len(mail.content)}" in mail.mail


# -- line ends and dots ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 400_000], ids=["small", "streamed"])
def test_bare_line_ends_by_bdat(lab: Lab, size: int) -> None:
    """RFC 3030 §2: BDAT carries what it carries; DATA has lines, and only CRLF ends them."""
    chunking, data = lab.hop(), lab.hop(only("8BITMIME"))
    gateway = lab.gateway(route(chunking.url, "bdat.test"), route(data.url, "data.test"))
    content = (
        b"Subject: x\r\n\r\none\ntwo\rthree\r\n.\n..four\n.\r\n" + b"five\n" * (size // 5) + b"end"
    )
    gateway.send(content, ["bob@bdat.test", "bob@data.test"], bdat=7 if not size else 100_000)
    assert chunking.wait()[0].body == content
    got = data.wait()[0].body
    expected = (
        content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n") + b"\r\n"
    )
    assert got == expected


def test_bare_line_ends_by_data_are_repaired_for_everybody(lab: Lab) -> None:
    """RFC 5321 §2.3.8, bare_newline = "normalize"; transparency (§4.5.2) is about lines that CRLF ended."""
    chunking, data = lab.hop(), lab.hop(PLAIN)
    gateway = lab.gateway(route(chunking.url, "bdat.test"), route(data.url, "data.test"))
    with Sender(gateway.port) as sender:
        sender.envelope("a@sender.test", ["bob@bdat.test", "bob@data.test"])
        sender.command("DATA")
        sender.send(b"Subject: x\r\n\r\none\ntwo\n.\n..\r\n..\r\nend\r\n.\r\n")
        assert sender.code() == 250
    for hop in (chunking, data):
        assert hop.wait()[0].body == b"Subject: x\r\n\r\none\r\ntwo\r\n.\r\n..\r\n.\r\nend\r\n"


DOTS = [
    b"",
    b".",
    b"\r\n",
    b".\r\n",
    b"..\r\n",
    b"\r\n.\r\n",
    b"\r\n.\r\n.\r\n..\r\n...\r\nx",
    b"Subject: x\r\n\r\n.\r\n",
    b".Subject: x\r\n\r\n" + b"." * 100,
    b"Subject: x\r\n\r\n" + b".\r\n" * 2000,
    b"Subject: x\r\n\r\n" + (b"." + b"y" * 997 + b"\r\n") * 100,
    b"Subject: x\r\n\r\n" + b"..\r\nabc\r\n" * 60_000,  # streamed by BDAT and DATA
    b"Subject: x\r\n\r\n" + (b"z" * 262_143 + b"\r\n.\r\n") * 2 + b".",
]


def test_dots_arrive_as_they_were(lab: Lab) -> None:
    """RFC 5321 §4.5.2: DATA and BDAT in, DATA (with and without PIPELINING) and BDAT out: octet for octet."""
    hops = [lab.hop(), lab.hop(PLAIN), lab.hop(())]
    domains = ["bdat.test", "data.test", "old.test"]
    gateway = lab.gateway(*(route(h.url, d) for h, d in zip(hops, domains, strict=True)))
    rcpts = [f"bob@{domain}" for domain in domains]
    expected: list[tuple[bytes, bool]] = []
    with Sender(gateway.port) as sender:
        for number, content in enumerate(DOTS):
            for bdat in (0, len(content) // 3 + 1, len(content) + 1):
                if bdat and not content:
                    continue
                tagged = b"X-Number: %d-%d\r\n" % (number, bdat) + content
                assert sender.submit(tagged, rcpts, bdat=bdat).startswith("250")
                expected.append((tagged, bool(bdat)))
    for hop in hops:
        got = {first_line(mail.body): mail for mail in hop.wait(len(expected))}
        for content, by_bdat in expected:
            mail = got[first_line(content)]
            whole = content if content.endswith(b"\r\n") else content + b"\r\n"
            verbatim = by_bdat and mail.bdat
            assert mail.body == (content if verbatim else whole), (content[:40], mail.bdat)
    gateway.wait_empty()


def first_line(content: bytes) -> bytes:
    return content.partition(b"\r\n")[0]


def test_dots_arrive_through_two_gateways(lab: Lab) -> None:
    """What comes back out of the store of a second gateway is what went into the first."""
    mailbox = lab.directory / "mail"
    behind = Lab(lab.directory / "behind")
    try:
        second = behind.gateway(route(f"maildir:{mailbox}", "rcpt.test"))
        gateway = lab.gateway(route(f"smtp://127.0.0.1:{second.port}", "rcpt.test"))
        for content in DOTS[3:]:
            gateway.send(content)
        second.wait_for("delivered", len(DOTS) - 3)
    finally:
        behind.close()
    got = sorted(strip_trace(file.read_bytes()) for file in (mailbox / "new").iterdir())
    whole = [content if content.endswith(b"\r\n") else content + b"\r\n" for content in DOTS[3:]]
    assert got == sorted(whole)


def strip_trace(content: bytes) -> bytes:
    """Without Return-Path, Delivered-To and two Received fields."""
    _, _, content = content.partition(b"Delivered-To: bob@rcpt.test\r\n")
    return without_received(without_received(content))


def test_hops_close_cleanly(lab: Lab) -> None:
    """Connections that are not needed any more end with QUIT."""
    hop: NextHop = lab.hop()
    gateway = lab.gateway(
        route(hop.url, "rcpt.test", messages_per_connection=1), extra="[delivery]\nidle_s = 0.0\n"
    )
    for _ in range(3):
        gateway.send(ASCII)
    hop.wait(3)
    wait_until(lambda: len(hop.said("QUIT")) == 3, "three times QUIT")
    assert len(hop.clients) == 3

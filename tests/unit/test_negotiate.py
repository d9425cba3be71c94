"""What is made of a message for a next hop that offers less than it needs.

Standards RFC 1870 §6, RFC 3030 §3, RFC 3461 §5, RFC 6152 §3, RFC 6531 §3
"""

from __future__ import annotations

from typing import Any

import pytest
from unit.smtp_rig import CONTENT, PREFIX, job

from gateway.delivery.negotiate import Delivery, ascii_mailbox, must_wait, prepare
from gateway.mail import envelope as env
from gateway.mail.envelope import Recipient
from gateway.protocol.esmtp_client import Capabilities

EVERYTHING = Capabilities(
    pipelining=True, eightbit=True, smtputf8=True, chunking=True, binarymime=True, dsn=True, size=True
)
NOTHING = Capabilities()
UTF8_BODY = (
    b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    + "Grüße\r\n".encode()
)
BINARY = (
    b"MIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\n"
    b"\x00\x01\nx\r\xff"
)


def prepared(offered: Capabilities, *, lmtp: bool = False, xclient: bool = False, **message: Any) -> Delivery:
    delivery = Delivery(job(**message), lambda job, outcomes: None)
    delivery.body = delivery.job.body()
    prepare(delivery, offered, lmtp=lmtp, xclient=xclient)
    return delivery


def mail_of(delivery: Delivery) -> bytes:
    assert delivery.transaction is not None
    return delivery.transaction.mail


def content_of(delivery: Delivery) -> bytes:
    assert delivery.transaction is not None and delivery.transaction.content is not None
    return b"".join(delivery.transaction.content)


def refusals(delivery: Delivery) -> list[str]:
    return [delivery.refused[position][2] for position in sorted(delivery.refused)]


def test_everything_is_used() -> None:
    recipients = [Recipient("a@b", env.NOTIFY_SUCCESS, "rfc822;x@y")]
    delivery = prepared(
        EVERYTHING, content=UTF8_BODY, recipients=recipients, body=env.BODY_8BITMIME, ret=env.RET_FULL, envid="E1"
    )
    size = len(PREFIX + UTF8_BODY)
    assert mail_of(delivery) == b"MAIL FROM:<m0@a> SIZE=%d BODY=8BITMIME RET=FULL ENVID=E1\r\n" % size
    assert delivery.transaction is not None and delivery.transaction.bdat and delivery.dsn
    assert delivery.transaction.rcpts == [b"RCPT TO:<a@b> NOTIFY=SUCCESS ORCPT=rfc822;x@y\r\n"]
    assert content_of(delivery) == PREFIX + UTF8_BODY
    assert delivery.transaction.size == size


def test_nothing_is_needed() -> None:
    delivery = prepared(NOTHING)
    assert mail_of(delivery) == b"MAIL FROM:<m0@a>\r\n"
    assert content_of(delivery) == PREFIX + CONTENT.replace(b"\r\n.", b"\r\n..") + b".\r\n"
    assert not delivery.dsn


def test_a_last_line_without_its_end_gets_one() -> None:
    assert content_of(prepared(NOTHING, content=b"Subject: x\r\n\r\ny")).endswith(b"\r\ny\r\n.\r\n")


def test_only_some_recipients() -> None:
    work = job(rcpts=4)
    work.recipients = [1, 3]
    delivery = Delivery(work, lambda job, outcomes: None)
    delivery.body = work.body()
    prepare(delivery, NOTHING)
    assert delivery.transaction is not None
    assert delivery.transaction.rcpts == [b"RCPT TO:<r1.m0@b>\r\n", b"RCPT TO:<r3.m0@b>\r\n"]


def test_too_big() -> None:
    delivery = prepared(Capabilities(size=True, max_octets=20), rcpts=2)
    assert delivery.transaction is None and refusals(delivery) == ["5.3.4", "5.3.4"]


def test_8_bit_is_converted() -> None:
    delivery = prepared(NOTHING, content=UTF8_BODY, body=env.BODY_8BITMIME)
    content = content_of(delivery)
    assert content.isascii() and b"quoted-printable" in content and content.endswith(b"\r\n.\r\n")
    assert mail_of(delivery) == b"MAIL FROM:<m0@a>\r\n"
    announced = prepared(Capabilities(size=True), content=UTF8_BODY)
    assert announced.transaction is not None
    assert b"SIZE=%d\r\n" % announced.transaction.size in announced.transaction.mail
    assert announced.transaction.size > len(PREFIX + UTF8_BODY)


def test_8_bit_that_cannot_be_converted() -> None:
    signed = b"MIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\xff\r\n--b--\r\n"
    delivery = prepared(NOTHING, content=signed, rcpts=2)
    assert delivery.transaction is None and refusals(delivery) == ["5.6.3", "5.6.3"]


def test_binary() -> None:
    options: dict[str, Any] = {"content": BINARY, "body": env.BODY_BINARYMIME}
    verbatim = prepared(EVERYTHING, **options)
    assert b"BODY=BINARYMIME" in mail_of(verbatim)
    assert content_of(verbatim) == PREFIX + BINARY
    for offered in (NOTHING, Capabilities(eightbit=True), Capabilities(eightbit=True, chunking=True)):
        converted = prepared(offered, **options)
        assert b"BINARYMIME" not in mail_of(converted)
        assert b"base64" in content_of(converted) and b"\0" not in content_of(converted)


def test_binary_in_name_only_goes_as_it_is() -> None:
    delivery = prepared(Capabilities(eightbit=True), content=UTF8_BODY, body=env.BODY_BINARYMIME)
    assert mail_of(delivery) == b"MAIL FROM:<m0@a> BODY=8BITMIME\r\n"
    assert content_of(delivery) == PREFIX + UTF8_BODY + b".\r\n"


def test_non_ascii_addresses() -> None:
    recipients = [Recipient("a@b"), Recipient("ü@b"), Recipient("u@gänse.example")]
    offered = prepared(EVERYTHING, recipients=recipients)
    assert b" SMTPUTF8" in mail_of(offered) and not offered.refused
    without = prepared(NOTHING, recipients=recipients)
    assert without.transaction is not None
    assert without.transaction.rcpts == [b"RCPT TO:<a@b>\r\n", b"RCPT TO:<u@xn--gnse-loa.example>\r\n"]
    assert without.positions == [0, 2] and refusals(without) == ["5.6.7"]


def test_non_ascii_reverse_path() -> None:
    assert b" SMTPUTF8" in mail_of(prepared(EVERYTHING, reverse_path="ü@a"))
    delivery = prepared(NOTHING, reverse_path="ü@a", rcpts=2)
    assert delivery.transaction is None and refusals(delivery) == ["5.6.7", "5.6.7"]
    assert b"<u@xn--gnse-loa.example>" in mail_of(prepared(NOTHING, reverse_path="u@gänse.example"))


def test_non_ascii_header() -> None:
    header = "Subject: Grüße\r\n\r\nx\r\n".encode()
    assert b" SMTPUTF8" in mail_of(prepared(EVERYTHING, content=header, smtputf8=True))
    delivery = prepared(Capabilities(eightbit=True), content=header, smtputf8=True)
    assert delivery.transaction is None and refusals(delivery) == ["5.6.9"]
    body_only = prepared(Capabilities(eightbit=True), content=UTF8_BODY, smtputf8=True)
    assert b" BODY=8BITMIME\r\n" in mail_of(body_only)


def test_what_waits_is_done_off_the_loop() -> None:
    def waits(offered: Capabilities, **message: Any) -> bool:
        delivery = Delivery(job(**message), lambda job, outcomes: None)
        delivery.body = delivery.job.body()
        return must_wait(delivery, offered)

    big = b"Subject: x\r\n\r\n" + b"x\r\n" * 200_000
    assert not waits(NOTHING)
    assert waits(NOTHING, in_memory=False)
    assert not waits(NOTHING, content=big, in_memory=False)  # is streamed
    assert waits(NOTHING, content=big + b"\xff\r\n")  # is converted
    assert not waits(EVERYTHING, content=big + b"\xff\r\n")


def test_xclient_is_sent_when_asked_for_and_offered() -> None:
    offered = Capabilities(xclient=("ADDR",))
    options: dict[str, Any] = {"client_address": "192.0.2.1:4711"}
    assert prepared(offered, **options).transaction.xclient == b""  # type: ignore[union-attr]
    told = prepared(offered, xclient=True, **options).transaction
    assert told is not None and told.xclient == b"XCLIENT ADDR=192.0.2.1\r\n"
    assert prepared(NOTHING, xclient=True, **options).transaction.xclient == b""  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("mailbox", "expected"),
    [("u@gänse.example", "u@xn--gnse-loa.example"), ("ü@b", ""), ("u@ü ü", ""), ("u@B.example", "u@b.example")],
)
def test_ascii_mailbox(mailbox: str, expected: str) -> None:
    assert ascii_mailbox(mailbox) == expected

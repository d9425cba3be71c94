"""Facts of a message: the kernel packs what the slow way packs, whatever the message is."""

from __future__ import annotations

from gateway.mail.imap_facts import message_facts
from tests.native import model_imap_facts as model

MAX_OCTETS = 1000
RUNS = 2000
WORDS = (
    b"From: ",
    b"To: g: <a@b>, c@d;",
    b'"q\\"" <@a,@b:c@[1]>',
    b"(comment)",
    b"Subject: Re: [l] fwd: (fwd)",
    b"[fwd: ",
    b"=?utf-8?q?=C3=A9?=",
    b"\r\n ",
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n",
    b"Content-Type: message/rfc822\r\n\r\n",
    b"Content-Disposition: attachment; filename=\"a\\",
    b"Content-Language: de, en",
    b"Content-Transfer-Encoding: x",
    b"References: <a@b> <c d>",
    b"Message-ID: ",
    b"In-Reply-To: ",
    b"Date: 1 Jan 2024 10:00 +0000",
)


def seeds() -> list[bytes]:
    return [
        b"".join(WORDS[:4]) + b"\r\n" + WORDS[4] + b"\r\n" + WORDS[8] + WORDS[9] + WORDS[13] + b"\r\n",
        WORDS[10] + b"\r\n" + WORDS[11] + b"\r\n" + WORDS[12] + b"\r\n" + WORDS[16] + b"\r\n\r\n",
    ]


def check(data: bytes) -> None:
    assert message_facts(data, "Q 0").packed == model.message_facts(data, "Q 0")

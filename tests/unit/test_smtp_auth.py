"""AUTH in the state machine of SMTP: whole and octet by octet, in order and out of it (RFC 4954 §4)."""

from __future__ import annotations

import base64

import pytest

from gateway.accounts.model import REFUSALS
from gateway.mail import replies
from gateway.mail.reply import Reply
from gateway.protocol import smtp_server as smtp


def b64(text: bytes) -> bytes:
    return base64.b64encode(text)


class Dialogue:
    """A machine whose AUTH takes one user; says what a client would see."""

    def __init__(self, *, whole: bool) -> None:
        settings = smtp.Settings(hostname="mx.test", auth=True, line_octets=smtp.AUTH_LINE_OCTETS)
        self.machine = smtp.SmtpServerMachine(settings)
        self.machine.mechanisms = ("PLAIN", "LOGIN")
        self.machine.greet(Reply(220, "", "mx.test"))
        self.machine.data_to_send()
        self.whole = whole
        self.cancelled = 0
        self.login: list[bytes] = []

    def send(self, octets: bytes) -> list[str]:
        pieces = [octets] if self.whole else [octets[i : i + 1] for i in range(len(octets))]
        for piece in pieces:
            self.machine.receive_data(piece)
            while (event := self.machine.next_event()) is not None:
                self.answer(event[0], event[1], event[2])
        return self.machine.data_to_send().decode().splitlines()

    def answer(self, kind: int, a: object, b: object) -> None:
        machine = self.machine
        if kind == smtp.HELLO:
            machine.accept_hello(str(a), str(b))
        elif kind == smtp.AUTH:
            if a == "PLAIN" and isinstance(b, bytes):
                self.judge(b)
            elif a == "LOGIN" and b is None:
                machine.challenge(b"Username:")
            else:
                machine.reply(REFUSALS["mechanism"].smtp)
        elif kind == smtp.AUTH_RESPONSE:
            assert isinstance(a, bytes)
            self.login.append(a)
            if len(self.login) % 2:
                machine.challenge(b"Password:")
            else:
                self.judge(b"\0".join((b"", *self.login[-2:])))
        elif kind == smtp.AUTH_CANCELLED:
            self.cancelled += 1
        elif kind == smtp.MAIL:
            machine.reply(replies.SENDER_OK)

    def judge(self, plain: bytes) -> None:
        right = plain == b"\0alice\0secret"
        self.machine.reply(replies.AUTHENTICATED if right else REFUSALS["credentials"].smtp)


@pytest.fixture(params=[True, False], ids=["whole", "octets"])
def dialogue(request: pytest.FixtureRequest) -> Dialogue:
    return Dialogue(whole=request.param)


def test_login_in_steps_and_what_follows(dialogue: Dialogue) -> None:
    assert "250 AUTH PLAIN LOGIN" in dialogue.send(b"EHLO c.test\r\n")
    assert dialogue.send(b"MAIL FROM:<a@b>\r\n") == ["530 5.7.0 Authentication required"]
    assert dialogue.send(b"AUTH LOGIN\r\n") == ["334 " + b64(b"Username:").decode()]
    assert dialogue.send(b64(b"alice") + b"\r\n") == ["334 " + b64(b"Password:").decode()]
    assert dialogue.send(b64(b"secret") + b"\r\n")[0].startswith("235 2.7.0")
    assert dialogue.send(b"AUTH PLAIN\r\n")[0].startswith("503 5.5.1")
    assert not any("AUTH" in line for line in dialogue.send(b"EHLO c.test\r\n"))
    assert dialogue.send(b"MAIL FROM:<a@b> AUTH=x+2Dy\r\n")[0].startswith("250 2.1.0")


def test_an_initial_response_and_an_empty_one(dialogue: Dialogue) -> None:
    dialogue.send(b"EHLO c.test\r\n")
    assert dialogue.send(b"auth plain =\r\n")[0].startswith("504"), "the mechanism as it was written"
    assert dialogue.send(b"AUTH PLAIN =\r\n")[0].startswith("535 5.7.8")
    assert dialogue.send(b"AUTH PLAIN " + b64(b"\0alice\0secret") + b"\r\n")[0].startswith("235")


def test_a_client_that_gives_up_or_breaks_the_form(dialogue: Dialogue) -> None:
    dialogue.send(b"EHLO c.test\r\n")
    for line, code in ((b"*", "501 5.7.0"), (b"a", "501 5.5.2"), (b"A" * 13_000, "500 5.5.6")):
        assert dialogue.send(b"AUTH LOGIN\r\n")[0].startswith("334")
        assert dialogue.send(line + b"\r\n")[0].startswith(code)
        assert dialogue.send(b"NOOP\r\n") == ["250 2.0.0 Ok"], "commands again"
    assert dialogue.cancelled == 3
    assert dialogue.send(b"AUTH PLAIN ====\r\n")[0].startswith("501")
    assert dialogue.send(b"AUTH\r\n")[0].startswith("501")


def test_out_of_order(dialogue: Dialogue) -> None:
    assert dialogue.send(b"AUTH LOGIN\r\n")[0].startswith("503")
    dialogue.send(b"EHLO c.test\r\nAUTH PLAIN " + b64(b"\0alice\0secret") + b"\r\n")
    dialogue.send(b"MAIL FROM:<a@b>\r\n")
    assert dialogue.send(b"AUTH LOGIN\r\n")[0].startswith("503")
    other = smtp.SmtpServerMachine(smtp.Settings(hostname="mx.test"))
    other.receive_data(b"EHLO c\r\n")
    other.next_event()
    other.accept_hello("EHLO", "c")
    other.receive_data(b"AUTH PLAIN AA==\r\nMAIL FROM:<a@b> AUTH=<>\r\n")
    assert other.next_event() is None
    codes = [line[:9] for line in other.data_to_send().decode().splitlines()[-2:]]
    assert codes == ["500 5.5.1", "555 5.5.4"]


def test_challenge_outside_an_exchange_is_our_bug(dialogue: Dialogue) -> None:
    with pytest.raises(smtp.LocalProtocolError):
        dialogue.machine.challenge(b"")

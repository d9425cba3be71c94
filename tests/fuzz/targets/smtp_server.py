"""The server's state machine: in step with the client, whatever is sent and refused and however it is cut."""

from __future__ import annotations

from gateway.mail import replies
from gateway.mail.reply import Reply
from gateway.protocol import smtp_server as smtp
from tests.dialogs.script import scripts
from tests.fuzz.octets import WHOLE, cut, options
from tests.fuzz.smtp_step import Step, split_replies

CODE = ("gateway.protocol.esmtp",)
MAX_OCTETS = 1500
RUNS = 2_200
WORDS = (
    b"EHLO a\r\n",
    b"LHLO a\r\n",
    b"MAIL FROM:<a@b>\r\n",
    b"RCPT TO:<c@d>\r\n",
    b"DATA\r\n",
    b"\r\n.\r\n",
    b"BDAT 5\r\n",
    b"BDAT 3 LAST\r\n",
    b"RSET\r\n",
    b"STARTTLS\r\n",
    b"XCLIENT ADDR=192.0.2.1\r\n",
    b"QUIT\r\n",
    b" BODY=BINARYMIME",
    b" SIZE=",
)

LMTP, TLS, XCLIENT, REJECT, TIGHT = 1, 2, 4, 8, 16
REFUSAL = Reply(450, "4.2.0", "Not now")


def seeds() -> list[bytes]:
    found = []
    for script in scripts():
        sent = b"".join(step.octets for step in script.steps if step.kind == "C")
        flags = LMTP * bool(script.settings.get("lmtp")) | TLS * bool(
            script.settings.get("starttls")
        )
        flags |= XCLIENT * bool(script.settings.get("xclient"))
        found += [
            bytes([flags | more, verdicts, how]) + sent
            for more, verdicts, how in ((0, 0, 0), (TIGHT, 5, 1))
        ]
    return found


class Server:
    """Answers what the machine asks, by a number that decides what is refused (0: nothing)."""

    def __init__(self, flags: int, verdicts: int) -> None:
        tight = bool(flags & TIGHT)
        self.settings = smtp.Settings(
            hostname="mx.test",
            lmtp=bool(flags & LMTP),
            starttls=bool(flags & TLS),
            xclient=bool(flags & XCLIENT),
            normalize=not flags & REJECT,
            max_message_octets=64 if tight else 1 << 20,
            line_octets=80 if tight else 2048,
            recipients_max=2 if tight else 100,
            transactions_max=3 if tight else 0,
            errors_max=6 if tight else 1000,
            chunk_octets=16 if tight else 4096,
        )
        self.machine = smtp.SmtpServerMachine(self.settings, xclient_allowed=True)
        self.verdicts = verdicts
        self.asked = 0
        self.sent = b""
        self.content = b""
        self.messages: list[tuple[list[str], bytes]] = []

    def feed(self, octets: bytes) -> None:
        machine = self.machine
        machine.receive_data(octets)
        while not machine.closing and (event := machine.next_event()) is not None:
            self.answer(*event)
        self.sent += machine.data_to_send()
        assert machine.closing or machine.unread_octets <= self.settings.line_octets
        assert machine.buffered_octets <= self.settings.chunk_octets + len(octets)
        assert len(machine.recipients) <= self.settings.recipients_max

    def refuses(self) -> bool:
        self.asked += 1
        return bool(
            self.verdicts and (self.asked * 2654435761 + self.verdicts * 40503) % 65521 % 4 == 0
        )

    def answer(self, kind: int, a: object, b: object) -> None:
        machine = self.machine
        if kind == smtp.HELLO:
            machine.accept_hello(str(a), str(b))
        elif kind == smtp.CONTENT:
            self.content += bytes(a)  # type: ignore[call-overload]
        elif kind == smtp.RESET:
            self.content = b""
        elif kind == smtp.END_OF_DATA:
            self.end_of_data()
        elif kind == smtp.QUIT:
            pass
        elif self.refuses():
            machine.reply(REFUSAL)
        elif kind == smtp.DATA:
            machine.start_data()
        elif kind in (smtp.STARTTLS, smtp.XCLIENT):
            machine.reply(Reply(220, "", "mx.test"))
            if kind == smtp.STARTTLS:
                self.sent += machine.data_to_send()
                machine.tls_started()
        else:
            machine.reply(replies.RECIPIENT_OK)

    def end_of_data(self) -> None:
        machine = self.machine
        last = machine.decoder.take(True)
        content = self.content + (bytes(last) if last is not None else b"")
        self.content = b""
        refusal = replies.MESSAGE_TOO_BIG if machine.decoder.overflow else None
        if refusal is None and self.refuses():
            refusal = REFUSAL
        if refusal is None:
            self.messages.append(([r.forward_path for r in machine.recipients], content))
            machine.accept_content(b"250 2.0.0 Ok: queued\r\n")
        elif self.settings.lmtp:
            machine.reply_each([refusal] * len(machine.recipients))
        else:
            machine.reply(refusal)


def check(data: bytes) -> None:
    (flags, verdicts, how), sent = options(data, 3)
    server = Server(flags, verdicts)
    for piece in cut(sent, how):
        server.feed(piece)
    step = Step(
        sent,
        lmtp=server.settings.lmtp,
        line_octets=server.settings.line_octets,
        normalize=server.settings.normalize,
    )
    step.check(split_replies(server.sent))
    assert step.closed == server.machine.closing
    assert [(recipients, content) for recipients, content, _ in step.accepted] == server.messages
    # STARTTLS is about what arrives together; all else must not be.
    if how != WHOLE and not flags & TLS:
        whole = Server(flags, verdicts)
        whole.feed(sent)
        assert (whole.sent, whole.messages) == (server.sent, server.messages)

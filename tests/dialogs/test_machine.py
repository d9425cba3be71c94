"""Every dialogue on the bare state machine: as written, and cut after every octet."""

from __future__ import annotations

import pytest
from script import Script, envelope_text, matches, scripts, split_reply

from gateway.mail import replies
from gateway.mail.reply import Reply
from gateway.protocol import smtp_server as smtp

ALL = [s for s in scripts() if not s.socket]


class AcceptAll:
    """The smallest server: says yes to what the machine lets through, keeps what it accepted."""

    def __init__(self, script: Script) -> None:
        settings = dict(script.settings)
        for key in ("greeting_delay_s", "relay"):
            settings.pop(key, None)
        self.busy = settings.pop("busy", False)
        if "errors" in settings:
            settings["errors_max"] = settings.pop("errors")
        self.reject = settings.pop("bare", "normalize") == "reject"
        options = {"hostname": "mx.test", **settings, "normalize": not self.reject}
        self.machine = smtp.SmtpServerMachine(smtp.Settings(**options), xclient_allowed=True)
        self.messages: list[tuple[str, bytes]] = []
        self.content: list[bytes] = []
        self.out = b""
        self.machine.greet(Reply(220, "", "mx.test ESMTP"))
        self.collect()

    def collect(self) -> None:
        self.out += self.machine.data_to_send()

    def feed(self, octets: bytes) -> None:
        machine = self.machine
        machine.receive_data(octets)
        while not machine.closing and (event := machine.next_event()) is not None:
            self.answer(*event)
        self.collect()

    def answer(self, kind: int, a: object, b: object) -> None:
        machine = self.machine
        if kind == smtp.HELLO:
            machine.accept_hello(str(a), str(b))
        elif kind == smtp.DATA:
            machine.start_data()
        elif kind == smtp.CONTENT:
            self.content.append(bytes(a))
        elif kind == smtp.END_OF_DATA:
            self.end_of_data()
        elif kind == smtp.VRFY:
            machine.reply(replies.CANNOT_VERIFY if b == "VRFY" else replies.EXPN_DISABLED)
        elif kind == smtp.STARTTLS:
            machine.reply(replies.READY_FOR_TLS)
        elif kind == smtp.XCLIENT:
            machine.reply(Reply(220, "", "mx.test ESMTP"))
        elif kind == smtp.MAIL and self.busy:
            machine.reply(Reply(451, "4.4.5", "Too busy"))
        elif kind not in (smtp.QUIT, smtp.RESET):
            machine.reply(replies.SENDER_OK if kind == smtp.MAIL else replies.RECIPIENT_OK)

    def end_of_data(self) -> None:
        machine = self.machine
        decoder = machine.decoder
        facts = decoder.facts()
        last = decoder.take(True)
        if last is not None:
            self.content.append(bytes(last))
        content, self.content = b"".join(self.content), []
        refusal = None
        if decoder.overflow:
            refusal = replies.MESSAGE_TOO_BIG
        elif self.reject and machine.mail.body != 2 and (facts[8] or facts[9]):
            refusal = replies.BARE_LINE_END
        elif self.reject and machine.mail.body != 2 and facts[7]:
            refusal = replies.NUL_IN_CONTENT
        if refusal is None:
            text = envelope_text(machine.reverse_path, [r.forward_path for r in machine.recipients])
            self.messages.append((text, content))
            machine.accept_content(b"250 2.0.0 Ok: queued as TEST (fsync)\r\n")
        elif machine.settings.lmtp:
            machine.reply_each([refusal] * len(machine.recipients))
        else:
            machine.reply(refusal)


@pytest.mark.parametrize("cut", ["whole", "octets"])
@pytest.mark.parametrize("script", ALL, ids=lambda s: s.path.stem)
def test_dialogue(script: Script, cut: str) -> None:
    if cut == "octets" and script.whole:
        pytest.skip("what arrives in one read is the point of this one")
    server = AcceptAll(script)
    reply: list[str] = []
    accepted = ""
    for step in script.steps:
        where = f"{script.path.name}:{step.line}"
        if step.kind == "C":
            if cut == "whole":
                server.feed(step.octets)
            else:
                for i in range(len(step.octets)):
                    server.feed(step.octets[i : i + 1])
        elif step.kind == "S":
            found = split_reply(server.out)
            assert found, f"{where}: no reply, expected {step.pattern!r}"
            reply, server.out = found
            assert matches(step.pattern, reply[-1]), (
                f"{where}: {reply[-1]!r}, expected {step.pattern!r}"
            )
        elif step.kind == "S~":
            assert any(matches(step.pattern, line[4:]) for line in reply), f"{where}: {reply}"
        elif step.kind == "S!":
            assert server.machine.closing, f"{where}: still open"
        elif step.kind == "M":
            assert server.messages, f"{where}: no message was accepted"
            accepted, content = server.messages.pop(0)
            assert accepted == step.pattern, where
        elif step.kind == "M|":
            assert content == step.octets, where
    assert server.out == b"", f"{script.path.name}: unexpected {server.out!r}"
    assert not server.messages, f"{script.path.name}: a message nobody expected"

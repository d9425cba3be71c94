"""The sink misbehaves exactly as told: every action over a real socket, every condition, every limit."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
from click.testing import CliRunner
from scramp import ScramClient
from smtp_blaster import ledger, ledger_file, sink_faults
from smtp_blaster.cli import main
from smtp_blaster.sink import Fault, Receipt, Sink, SinkPlan
from smtp_blaster.sink_faults import ACTIONS, STAGES, TIMED, Faults, Occasion, Span

TOOLS = Path(__file__).parent.parent.parent / "tools"
WAIT_S = 60.0
TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8  # what the kernel has after RST, after FIN
LINE_MAX = 2**21  # more than an overlong line
HELLO = b"EHLO client.test\r\n"
ENVELOPE = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\n"
CONTENT = b"Message-ID: <one@client.test>\r\n\r\ntext\r\n.\r\n"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def serve(talk: Callable[..., Awaitable[None]], *faults: str, **plan) -> tuple[Sink, list[Receipt]]:
    """Run talk(sink) against a sink with these faults; its receipts."""
    receipts: list[Receipt] = []

    async def run() -> Sink:
        sink = Sink(
            SinkPlan(faults=tuple(map(Fault.parse, faults)), **plan), on_message=receipts.append
        )
        await sink.start()
        try:
            async with asyncio.timeout(WAIT_S):
                await talk(sink)
        finally:
            await sink.stop()
        return sink

    return uvloop.run(run()), receipts


class Client:
    """A client that reads what comes and judges nothing."""

    def __init__(self, sink: Sink) -> None:
        self._port = sink.port

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self._port, limit=LINE_MAX
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def reply(self) -> bytes:
        """A whole reply, or what there is before the end of the connection."""
        lines = b""
        while line := await self.reader.readline():
            lines += line
            if line[3:4] != b"-":
                break
        return lines

    async def say(self, octets: bytes) -> bytes:
        self.writer.write(octets)
        return await self.reply()

    async def hello(self) -> bytes:
        await self.reply()
        return await self.say(HELLO)

    async def transaction(self) -> bytes:
        """Up to the reply to the content, in step."""
        for line in ENVELOPE.splitlines(keepends=True):
            await self.say(line)
        await self.say(b"DATA\r\n")
        return await self.say(CONTENT)


async def first_reply(sink: Sink) -> bytes:
    async with Client(sink) as client:
        await client.hello()
        return await client.transaction()


# -- grammar ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "rcpt=450:4.2.0 grey@first:2",
        "greeting=garbage@0.01",
        "all=pause:5s@every:30s",
        "all=down:2s@from:10s",
        "all=reset@from:10s@until:20s@every:1s",
        "content=drop@0.1",
        "content=reset@nth:3",
        "mail=delay:0.1s-0.5s@from:10s@until:20s",
        "data=sip:~0.2s",
        "hello=drip:0.05s",
        "rcpt=550:5.1.1 no such user@0.5@sender:.*@bad\\.test@recipient:^(a|b)@",
        "transfer=half-close@recipient:x@y.test",
        "mail=421",
    ],
)
def test_a_fault_says_itself_as_it_was_told(text):
    assert str(Fault.parse(text)) == text
    assert Fault.parse(str(Fault.parse(text))) == Fault.parse(text)


def test_every_word_of_the_grammar_is_taken_and_explained_by_the_command():
    shown = CliRunner().invoke(main, ["sink", "--help"]).output
    for stage in STAGES:
        assert Fault.parse(f"{stage}=drop").stage == stage
        assert stage in shown
    for action in ACTIONS:
        assert Fault.parse(f"mail={action}").does == action
        assert action in shown
    for action in TIMED:
        assert Fault.parse(f"mail={action}:10ms").delay_s == 0.01
        assert f"{action}:T" in shown


def test_the_old_word_for_the_greeting():
    assert Fault.parse("connect=421") == Fault("greeting", code=421)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mail", "STAGE=ACTION"),
        ("nowhere=450", "STAGE=ACTION"),
        ("mail=354", "reply code"),
        ("mail=explode", "no ACTION"),
        ("mail=delay", "no ACTION"),
        ("mail=drop:1s", "no ACTION"),
        ("mail=delay:soon", "not a time"),
        ("mail=delay:2s-1s", "shorter"),
        ("mail=450@first:0", "whole number"),
        ("mail=450@7", "between 0 and 1"),
        ("mail=450@sender:(", "unterminated"),
        ("mail=pause:1s@every:5s", "every: is for all"),
        ("all=garbage@every:5s", "every: is for all"),
        ("all=pause:5s", "say when"),
        ("transfer=garbage", "nothing is answered"),
    ],
)
def test_what_the_grammar_refuses_is_answered_with_the_grammar(text, why):
    with pytest.raises(ValueError, match=why) as caught:
        Fault.parse(text)
    assert "CONDITION" in str(caught.value)
    outcome = CliRunner().invoke(main, ["sink", "127.0.0.1:0", "--fault", text])
    assert outcome.exit_code == 2
    assert "CONDITION" in outcome.output


def test_spans():
    chance = random.Random(1)
    assert Span.parse("500ms").draw_s(chance) == 0.5
    drawn = [Span.parse("1s-3s").draw_s(chance) for _ in range(1000)]
    assert 1.0 <= min(drawn) < 1.1 and 2.9 < max(drawn) <= 3.0
    drawn = [Span.parse("~2m").draw_s(chance) for _ in range(5000)]
    assert 110 < sum(drawn) / len(drawn) < 130


# -- conditions ------------------------------------------------------------------------------------


def struck(fault: str, occasions: list[Occasion], stage: str = "rcpt", seed: int = 1) -> list[bool]:
    faults, chance = Faults((Fault.parse(fault),)), random.Random(seed)
    return [faults.strike(stage, occasion, chance) is not None for occasion in occasions]


def about(recipient: str = "b@y.test", sender: str = "a@x.test", message: str = "") -> Occasion:
    return Occasion(sender, [recipient], message or recipient)


def test_first_counts_the_attempts_of_each_message():
    tries = [about("one"), about("two"), about("one"), about("one"), about("two"), about("two")]
    assert struck("rcpt=450@first:2", tries) == [True, True, True, False, True, False]


def test_first_forgets_the_oldest_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(sink_faults, "ATTEMPTS_MAX", 2)
    tries = [about(name) for name in ("one", "two", "three", "one", "three")]
    assert struck("rcpt=450@first:1", tries) == [True, True, True, True, False]


def test_nth_sender_recipient_probability():
    assert struck("rcpt=450@nth:3", [about()] * 6) == [False, False, True, False, False, True]
    assert struck("rcpt=450@recipient:^b@", [about("b@y"), about("cb@y")]) == [True, False]
    senders = [about(sender="a@bad.test"), about(sender="a@good.test")]
    assert struck("rcpt=450@sender:bad", senders) == [True, False]
    some = struck("rcpt=450@0.3", [about()] * 1000)
    assert 230 < sum(some) < 370
    assert some == struck("rcpt=450@0.3", [about()] * 1000)
    assert some != struck("rcpt=450@0.3", [about()] * 1000, seed=2)


def test_all_is_every_stage_with_an_answer():
    for stage in STAGES:
        assert struck("all=drop", [about()], stage) == [stage != "transfer"]


def test_from_and_until_count_since_the_start(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(sink_faults.time, "monotonic", lambda: clock[0])
    faults, chance = Faults((Fault.parse("rcpt=450@from:10s@until:20s"),)), random.Random(1)
    seen = []
    for clock[0] in (109.9, 110.0, 119.9, 120.0):
        seen.append(faults.strike("rcpt", about(), chance) is not None)
    assert seen == [False, True, True, False]


# -- every action, at every stage where it makes sense ---------------------------------------------

OK = b"250 2.0.0 Ok\r\n"


@pytest.mark.parametrize(
    ("action", "answer"),
    [
        ("drop", b""),
        ("twice", OK),
        ("bare-lf", b"250 2.0.0 Ok\n"),
        ("drip:0", OK),
        ("drip:1ms", OK),
        ("delay:10ms", OK),
        ("sip:1ms", OK),
        ("pause:10ms", OK),
        ("overlong", b"250 " + b"x" * 1048576 + b"\r\n"),
        ("452:4.3.1 no room", b"452 4.3.1 no room\r\n"),
        ("554", b"554 5.0.0 content refused as told\r\n"),
        ("421", b"421 4.0.0 content refused as told\r\n"),
    ],
)
def test_behind_the_content(action, answer):
    answers = []

    async def talk(sink: Sink) -> None:
        answers.append(await first_reply(sink))

    sink, receipts = serve(talk, f"content={action}")
    assert answers == [answer]
    assert len(receipts) == (0 if action[0] in "45" else 1)  # refused is refused; all else is here
    assert sum(sink.faults.counts.values()) == 1


@pytest.mark.parametrize("stage", ["greeting", "hello", "mail", "rcpt", "data", "content", "transfer"])
def test_reset_and_drop_at_every_stage(stage):
    ends = []

    async def talk(sink: Sink) -> None:
        for _ in range(2):
            try:
                ends.append(await first_reply(sink) or "closed")
            except ConnectionError:
                ends.append("reset")

    serve(talk, f"{stage}=reset@nth:2", f"{stage}=drop")
    assert ends[0] == "closed"
    assert ends[1] == "reset"


def test_nothing_of_a_refused_transaction_is_taken():
    """RFC 5321 §4.1.4: without MAIL there is no RCPT; what a chunk of it held is in no later message."""
    answers = []

    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.hello()
            answers.append(await client.say(b"MAIL FROM:<refused@example.test>\r\n"))
            answers.append(await client.say(b"RCPT TO:<a@example.test>\r\n"))
            answers.append(await client.say(b"DATA\r\n"))
            answers.append(await client.say(b"BDAT 5 LAST\r\nstale"))
            answers.append(await client.transaction())

    _, receipts = serve(talk, "mail=450:4.7.1 later@sender:^refused@")
    assert [answer[:3] for answer in answers] == [b"450", b"503", b"503", b"503", b"250"]
    (receipt,) = receipts
    assert b"stale" not in receipt.content
    assert b"a@example.test" not in str(receipt.rcpts).encode()


@pytest.mark.parametrize("action", ["garbage", "wrong", "unended"])
def test_answers_that_are_none(action):
    """What comes is not the right answer, is the same for the same seed, and the sink lives on."""

    def heard(seed: int) -> list[bytes]:
        answers = []

        async def talk(sink: Sink) -> None:
            for _ in range(3):
                async with Client(sink) as client:
                    await client.hello()
                    client.writer.write(ENVELOPE + b"QUIT\r\n")
                    answers.append(await client.reader.read())

        sink, _ = serve(talk, f"rcpt={action}", seed=seed)
        assert sink.connections == 3
        return answers

    answers = heard(1)
    assert all(b"250 2.1.5 Ok\r\n" not in answer for answer in answers)
    assert answers == heard(1)
    assert action == "unended" or answers != heard(2)


def test_an_endless_reply_goes_on_until_the_client_goes():
    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.reply()
            client.writer.write(HELLO)
            await client.reader.readexactly(3_000_000)

    serve(talk, "hello=endless")


@pytest.mark.parametrize("action", ["silent", "half-close"])
def test_nothing_more_is_answered(action):
    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.hello()
            client.writer.write(ENVELOPE + b"QUIT\r\n")
            if action == "half-close":
                assert await client.reader.read() == b"250 2.1.0 Ok\r\n"
                client.writer.write(b"x" * 100_000)  # it still reads
                await client.writer.drain()
            else:
                assert await client.reply() == b"250 2.1.0 Ok\r\n"
                client.writer.write_eof()
                assert await client.reader.read() == b""
            assert sink.commands["RCPT"] == 1 and not sink.commands["QUIT"]

    serve(talk, f"rcpt={action}")


def test_a_late_answer_keeps_the_order():
    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.reply()
            client.writer.write(HELLO + ENVELOPE + b"NOOP\r\nDATA\r\n" + CONTENT + b"QUIT\r\n")
            text = (await client.reader.read()).decode()
            codes = [line[:3] for line in text.splitlines() if line[3] == " "]
            assert codes == ["250", "250", "250", "250", "354", "250", "221"]

    _, receipts = serve(talk, "mail=delay:5ms", "rcpt=drip:1ms", "data=delay:5ms", "quit=delay:5ms")
    assert len(receipts) == 1


def test_reading_slowly_through_a_small_window_takes_all_of_it():
    body = b"0123456789abcdef\r\n" * 4000

    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.hello()
            client.writer.write(ENVELOPE + b"DATA\r\n" + body + b".\r\nQUIT\r\n")
            assert (await client.reader.read()).endswith(b"221 2.0.0 Bye\r\n")

    _, receipts = serve(talk, "data=sip:1ms", receive_buffer_octets=4096)
    assert receipts[0].content == body


def test_refused_within_the_content():
    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.hello()
            client.writer.write(ENVELOPE + b"DATA\r\nfirst lines\r\n")
            assert (await client.reader.read()).endswith(b"\r\n552 too much\r\n")

    _, receipts = serve(talk, "transfer=552:too much")
    assert not receipts


def test_lmtp_with_a_late_reply_for_each_recipient():
    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.reply()
            rcpts = b"".join(b"RCPT TO:<%d@y>\r\n" % number for number in range(3))
            client.writer.write(b"LHLO x\r\nMAIL FROM:<>\r\n" + rcpts + b"DATA\r\n" + CONTENT + b"QUIT\r\n")
            text = (await client.reader.read()).decode()
            assert [line[:3] for line in text.splitlines()[-5:]] == ["354", "250", "250", "452", "221"]

    _, receipts = serve(talk, "content=452@recipient:2@y", "content=drip:1ms")
    assert receipts[0].rcpts == ["0@y", "1@y"]


def test_greylisting_by_envelope_and_by_message():
    async def talk(sink: Sink) -> None:
        replies = []
        for _ in range(4):
            async with Client(sink) as client:
                await client.hello()
                replies.append((await client.transaction())[:3])
        assert replies == [b"500", b"451", b"451", b"250"]  # without DATA, content is no command

    _, receipts = serve(talk, "rcpt=450:grey@first:1", "content=451@first:2")
    assert len(receipts) == 1


# -- the whole sink --------------------------------------------------------------------------------


def test_pause_by_the_clock_stops_answers_and_accepting_for_a_while():
    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.hello()
            sink.pause(0.2)
            client.writer.write(b"NOOP\r\n")
            async with Client(sink) as other:  # the kernel takes it
                answers = [asyncio.create_task(side.reply()) for side in (client, other)]
                await asyncio.sleep(0.05)
                assert sink.paused and not any(answer.done() for answer in answers)
                assert (await answers[0], (await answers[1])[:3]) == (OK, b"220")
                assert not sink.paused

    serve(talk)


def test_flapping_resets_and_comes_back():
    async def talk(sink: Sink) -> None:
        port, seen = sink.port, set()
        while len(seen) < 3 or sink.faults.counts["all=down:0.05s@every:0.1s"] < 2:
            try:
                async with Client(sink) as client:
                    await client.hello()
                    seen.add("answered")
                    if await client.reader.read() == b"":
                        seen.add("reset")
            except ConnectionRefusedError:
                seen.add("refused")
                await asyncio.sleep(0.005)
            except ConnectionResetError:
                seen.add("reset")
        assert sink.port == port

    serve(talk, "all=down:50ms@every:100ms")


def test_down_at_a_stage_and_pause_together():
    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.hello()
            with pytest.raises(ConnectionResetError):
                await client.say(ENVELOPE)
        sink.pause(0.1)
        while True:
            try:
                reply = await first_reply(sink)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
            else:
                assert reply == OK
                return

    serve(talk, "mail=down:50ms@first:1")


def test_connections_and_recipients_have_limits():
    async def talk(sink: Sink) -> None:
        async with Client(sink) as first, Client(sink) as second:
            await first.hello()
            assert (await second.reply()).startswith(b"421 4.3.2")
            assert await second.reader.read() == b""
            await first.say(b"MAIL FROM:<>\r\n")
            replies = [await first.say(b"RCPT TO:<a@b>\r\n") for _ in range(3)]
            assert [reply[:3] for reply in replies] == [b"250", b"250", b"452"]

    sink, _ = serve(talk, max_connections=1, max_recipients=2)
    assert (sink.connections, sink.connections_refused) == (1, 1)


# -- AUTH and TLS ----------------------------------------------------------------------------------


def in_thread(work: Callable[[int], None]) -> Callable[[Sink], Awaitable[None]]:
    async def talk(sink: Sink) -> None:
        await asyncio.to_thread(work, sink.port)

    return talk


@pytest.mark.parametrize("account", ["alice:secret", "any"])
@pytest.mark.parametrize("mechanism", ["auth_plain", "auth_login"])
def test_auth_by_password(account, mechanism):
    def work(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.ehlo()
            assert client.docmd("MAIL", "FROM:<a@b>")[0] == 530
            client.user, client.password = "alice", "wrong"
            if account != "any":
                with pytest.raises(smtplib.SMTPAuthenticationError):
                    client.auth("PLAIN", client.auth_plain)
            client.password = "secret"
            client.auth(mechanism[5:].upper(), getattr(client, mechanism))
            client.sendmail("a@b", ["c@d"], b"text\r\n")

    _, receipts = serve(in_thread(work), auth=(account,), require_auth=True)
    assert receipts[0].user == "alice"


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1"])
@pytest.mark.parametrize("password", ["secret", "wrong"])
def test_auth_by_scram(mechanism, password):
    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            assert mechanism.encode() in await client.hello()
            scram = ScramClient([mechanism], "alice", password)

            async def say(text: str) -> bytes:
                return await client.say(base64.b64encode(text.encode()) + b"\r\n")

            first = base64.b64encode(scram.get_client_first().encode())
            challenge = await client.say(f"AUTH {mechanism} ".encode() + first + b"\r\n")
            scram.set_server_first(base64.b64decode(challenge[4:]).decode())
            answer = await say(scram.get_client_final())
            if password == "wrong":
                assert answer.startswith(b"535 5.7.8")
            else:
                scram.set_server_final(base64.b64decode(answer[4:]).decode())
                assert (await say("")).startswith(b"235")

    serve(talk, auth=("alice:secret",))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"AUTH GSSAPI\r\n", b"504"),
        (b"AUTH\r\n", b"504"),
        (b"AUTH PLAIN !\r\n", b"501"),
        (b"AUTH PLAIN =\r\n", b"535"),
        (b"AUTH SCRAM-SHA-1 =\r\n", b"535"),
        (b"AUTH LOGIN\r\n*\r\n", b"501"),
    ],
)
def test_auth_that_leads_nowhere(said, answer):
    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.hello()
            client.writer.write(said + b"QUIT\r\n")
            lines = (await client.reader.read()).splitlines()
            assert lines[-2].startswith(answer)
            assert lines[-1].startswith(b"221")

    serve(talk, auth=("alice:secret",))


def test_a_fault_at_auth():
    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.hello()
            reply = await client.say(b"AUTH PLAIN " + base64.b64encode(b"\0a\0b") + b"\r\n")
            assert reply == b"454 4.7.0 later\r\n"

    serve(talk, "auth=454:4.7.0 later", auth=("any",))


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize("fault", ["starttls=delay:5ms", "content=drip:1ms", "mail=delay:5ms"])
def test_tls(tls, fault, certificate):
    context = ssl.create_default_context(cafile=str(certificate[0]))

    def work(port: int) -> None:
        if tls == "implicit":
            client: smtplib.SMTP = smtplib.SMTP_SSL("localhost", port, context=context)
        else:
            client = smtplib.SMTP("localhost", port)
            client.starttls(context=context)
        with client:
            client.ehlo()
            assert not client.has_extn("starttls")
            client.sendmail("a@b", ["c@d"], b"text\r\n")

    plan = {"certificate": str(certificate[0]), "key": str(certificate[1]), "tls": tls}
    _, receipts = serve(in_thread(work), fault, address="localhost:0", **plan)
    assert receipts[0].tls


@pytest.mark.parametrize("action", ["half-close", "reset", "silent"])
def test_leaving_under_tls(action, certificate):
    context = ssl.create_default_context(cafile=str(certificate[0]))

    def work(port: int) -> None:
        raw = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        with context.wrap_socket(raw, server_hostname="localhost") as client:
            assert client.recv(100).startswith(b"220")
            client.settimeout(0.1 if action == "silent" else WAIT_S)
            client.sendall(b"NOOP\r\n")
            if action == "silent":
                with pytest.raises(TimeoutError):
                    client.recv(100)
                return
            assert client.recv(100) == b""
            state = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
            assert state == (TCP_CLOSE if action == "reset" else TCP_CLOSE_WAIT)

    plan = {"certificate": str(certificate[0]), "key": str(certificate[1]), "tls": "implicit"}
    serve(in_thread(work), f"noop={action}", **plan)


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"tls": "implicit"}, "certificate"),
        ({"tls": "maybe"}, "starttls or implicit"),
        ({"auth": ("alice",)}, "USER:PASSWORD"),
        ({"require_auth": True}, "who may come in"),
        ({"eod": "never"}, "strict"),
    ],
)
def test_plans_that_cannot_be_meant(plan, why):
    with pytest.raises(ValueError, match=why):
        Sink(SinkPlan(**plan))


# -- the ledger ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "entries", "unconfirmed"),
    [
        ("drop", 1, 1), ("reset", 1, 1), ("silent", 1, 1), ("half-close", 1, 1), ("garbage", 1, 1),
        ("wrong", 1, 1), ("unended", 1, 1), ("twice", 1, 1), ("bare-lf", 1, 1), ("overlong", 1, 1),
        ("451", 0, 0), ("delay:1ms", 1, 0), ("drip:0", 1, 0),
    ],
)  # fmt: skip
def test_the_ledger_says_when_the_client_may_not_know(action, entries, unconfirmed, tmp_path):
    got = tmp_path / "got"

    async def talk(sink: Sink) -> None:
        async with Client(sink) as client:
            await client.hello()
            client.writer.write(ENVELOPE + b"DATA\r\n" + CONTENT)
            if action in ("delay:1ms", "drip:0"):
                while not (await client.reply()).startswith(b"250 2.0.0"):
                    pass
                assert await client.say(b"NOOP\r\n") == OK  # it has the reply
            else:
                while not sink.commands["DATA"]:
                    await asyncio.sleep(0.001)

    serve(talk, f"content={action}", ledger=str(got))
    kinds = [row[0] for row in ledger_file.rows(got)]
    assert kinds.count("entry") == entries
    assert kinds.count("unconfirmed") == unconfirmed


def test_a_client_that_goes_without_a_word_may_not_have_its_reply(tmp_path):
    got = tmp_path / "got"

    async def talk(sink: Sink) -> None:
        await first_reply(sink)
        while sink.sessions:
            await asyncio.sleep(0.001)

    serve(talk, ledger=str(got))
    assert [row[0] for row in ledger_file.rows(got)] == ["entry", "unconfirmed"]


def test_a_full_disk_under_the_ledger_takes_nothing_and_is_said():
    async def talk(sink: Sink) -> None:
        assert await first_reply(sink) == b""
        assert sink.finished.is_set()

    with pytest.raises(OSError, match="No space"):
        serve(talk, ledger="/dev/full")


# -- the command -----------------------------------------------------------------------------------


def command(*words: str) -> tuple[subprocess.Popen[str], int]:
    """A running sink and its port."""
    sink = subprocess.Popen(
        [sys.executable, "-m", "smtp_blaster", "sink", "127.0.0.1:0", "--json", *words],
        cwd=TOOLS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert sink.stderr is not None
    line = sink.stderr.readline()
    assert line.startswith("listening"), line + sink.stderr.read()
    return sink, int(line.split()[-1])


def send(port: int, messages: int, first: int = 0) -> None:
    for number in range(first, first + messages):
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.sendmail("a@b", ["c@d"], f"Message-ID: <{number}@test>\r\n\r\ntext\r\n".encode())


def test_several_processes_are_one_sink(tmp_path):
    got = tmp_path / "got"
    words = ["--processes", "2", "--messages", "20", "--ledger", str(got), "--fault", "noop=421"]
    sink, port = command(*words)
    send(port, 20)
    result = json.loads(sink.communicate(timeout=WAIT_S)[0])
    assert (sink.returncode, result["messages"], result["connections"]) == (0, 20, 20)
    assert result["commands"]["MAIL"] == 20
    assert result["faults"] == {"noop=421": 0}
    found = ledger.prove([got], [got])
    assert (found.accepted, found.delivered, found.kills, found.is_clean) == (20, 20, 0, True)


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_sink_with_its_result(processes, number):
    sink, port = command("--processes", processes)
    send(port, 3)
    sink.send_signal(number)
    assert json.loads(sink.communicate(timeout=WAIT_S)[0])["messages"] == 3
    assert sink.returncode == 0


def test_a_killed_sink_goes_on_in_its_ledger(tmp_path):
    got = tmp_path / "got"
    for round_ in range(2):
        sink, port = command("--ledger", str(got), "--append")
        send(port, 5, first=5 * round_)
        sink.kill()
        sink.communicate()
        with got.open("a") as file:
            file.write("half a li")
    found = ledger.prove([], [got])
    assert (found.delivered, found.kills, len(found.torn)) == (10, 1, 2)


def test_a_port_that_is_taken_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for processes in ("1", "2"):
            outcome = CliRunner().invoke(main, ["sink", address, "--processes", processes])
            assert outcome.exit_code == 1
            assert "in use" in outcome.output

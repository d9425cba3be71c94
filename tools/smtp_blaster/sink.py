"""The sink: takes SMTP and LMTP mail at speed, counts it, and fails in the ways it is told to.

    Owns      SinkPlan, Fault, Sink (a listening server), Receipt (one message as it came)
    Flow      SinkSession.data_received → _command or _content → reply, one write a read →
              Sink.receive
    Limits    lines 64 KiB, content max_message_octets; a run ends after plan.messages,
              plan.duration_s or a signal
    Errors    an unknown command is 500; whatever else happens to one session does not touch another
    Standards RFC 5321, RFC 2033, RFC 2920, RFC 3030, RFC 3207

The end of data is found by one of three rules, to show what smuggled mail becomes behind receivers
of each kind:
strict ends at CRLF "." CRLF only (RFC 5321 §4.1.1.4), lenient-lf takes LF for CRLF, lenient-any
takes any of CR, LF
and CRLF and drops NULs.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from smtp_blaster.content import identify
from smtp_blaster.ledger import Ledger
from smtp_blaster.target import parse

# Group 1 is what is not content.  A made-up line end stands before the first line.
EOD_RULES = {
    "strict": re.compile(rb"\r\n(\.\r\n)"),
    "lenient-lf": re.compile(rb"\n(\.\r?\n)"),
    "lenient-any": re.compile(rb"[\r\n]\0*(\.\0*(?:\r\n|\r(?=[^\n])|\n))"),
}
STUFFED = {
    "strict": re.compile(rb"(\r\n)\."),
    "lenient-lf": re.compile(rb"(\n)\."),
    "lenient-any": re.compile(rb"([\r\n])\."),
}
FIRST_LINE_END = b"\r\n"
SEAM_OCTETS = 8  # an end of data may begin so far before the end of what was searched
MAX_LINE_OCTETS = 65536
STAGES = ("connect", "hello", "starttls", "mail", "rcpt", "data", "content", "quit")
EXTENSIONS = (
    "PIPELINING",
    "8BITMIME",
    "SMTPUTF8",
    "CHUNKING",
    "BINARYMIME",
    "ENHANCEDSTATUSCODES",
    "DSN",
)


class Fault(msgspec.Struct, frozen=True):
    """At `stage`, in `probability` of the cases: answer `code`, or drop the connection, or answer `delay_s` late."""

    stage: str
    code: int = 0  # 0 = no reply of its own
    drop: bool = False  # the stage "content" drops after all of it came: the sender must not know
    delay_s: float = 0.0
    probability: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """STAGE=ACTION[@PROBABILITY] with ACTION a reply code, "drop" or "delay:SECONDS"."""
        stage, equals, action = text.partition("=")
        action, at, probability = action.partition("@")
        if stage not in STAGES or not equals:
            raise ValueError(
                f"{text!r}: expected STAGE=ACTION[@PROBABILITY] with STAGE one of {', '.join(STAGES)}"
            )
        chance = float(probability) if at else 1.0
        if action == "drop":
            return cls(stage, drop=True, probability=chance)
        if action.startswith("delay:"):
            return cls(stage, delay_s=float(action[6:]), probability=chance)
        if not re.fullmatch(r"[245]\d\d", action):
            raise ValueError(f"{text!r}: ACTION is a reply code, drop or delay:SECONDS")
        return cls(stage, code=int(action), probability=chance)


class SinkPlan(msgspec.Struct, frozen=True, kw_only=True):
    address: str = "127.0.0.1:0"
    messages: int = 0  # stop after so many; 0 = no limit
    duration_s: float = 0.0  # stop after so long; 0 = no limit
    eod: str = "strict"
    faults: tuple[Fault, ...] = ()
    without: tuple[str, ...] = ()  # extensions not offered
    seed: int = 1
    max_message_octets: int = 256 * 1024 * 1024
    ledger: str = ""
    certificate: str = ""  # with key: STARTTLS is offered
    key: str = ""
    backlog: int = 1024


class Receipt(msgspec.Struct):
    """One message as it came."""

    client: str  # host:port
    hello: str
    protocol: str  # SMTP | LMTP
    mail: str  # argument of MAIL, parameters included
    rcpts: list[str]  # forward-paths, without brackets and parameters
    rcpt_lines: list[str]  # arguments of RCPT as they came
    content: bytes  # without the dots of transparency
    bdat: bool
    tls: bool


class SinkResult(msgspec.Struct, kw_only=True):
    messages: int
    recipients: int
    octets: int
    connections: int
    commands: dict[str, int]
    faults: int
    seconds: float


class Sink:
    """A listening sink.  on_message gets each Receipt (contents are only put together when somebody wants them)."""

    def __init__(self, plan: SinkPlan, on_message: Callable[[Receipt], None] | None = None) -> None:
        if plan.eod not in EOD_RULES:
            raise ValueError(f"eod {plan.eod!r}: expected one of {', '.join(EOD_RULES)}")
        self.plan = plan
        self.on_message = on_message
        self.chance = random.Random(plan.seed)
        self.ledger = Ledger(Path(plan.ledger)) if plan.ledger else None
        self.keeps_content = on_message is not None or self.ledger is not None
        self.messages = self.recipients = self.octets = self.connections = self.faults = 0
        self.commands: Counter[str] = Counter()
        self.sessions: set[SinkSession] = set()
        self.finished = asyncio.Event()
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        if plan.certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(plan.certificate, plan.key or None)
        offered = [word for word in EXTENSIONS if word not in plan.without]
        if "SIZE" not in plan.without:
            offered.append(f"SIZE {plan.max_message_octets}")
        self._offered = ["sink.example.test", *offered]
        self._server: asyncio.Server | None = None
        self._started = 0.0

    async def start(self) -> None:
        """Listening at self.port afterwards."""
        host, port = parse(self.plan.address)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: SinkSession(self), host, port, backlog=self.plan.backlog
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._started = time.monotonic()

    async def run(self) -> SinkResult:
        """Start, take mail until the plan's end or finished.set(), stop."""
        await self.start()
        try:
            async with asyncio.timeout(self.plan.duration_s or None):
                await self.finished.wait()
        except TimeoutError:
            pass
        return await self.stop()

    async def stop(self) -> SinkResult:
        assert self._server is not None
        self._server.close()
        for session in list(self.sessions):
            session.transport.abort()
        await self._server.wait_closed()
        ledger, self.ledger = self.ledger, None  # a session may hear of its end later
        if ledger is not None:
            ledger.close()
        return SinkResult(
            messages=self.messages,
            recipients=self.recipients,
            octets=self.octets,
            connections=self.connections,
            commands=dict(self.commands),
            faults=self.faults,
            seconds=time.monotonic() - self._started,
        )

    def receive(self, receipt: Receipt, octets: int) -> None:
        self.messages += 1
        self.recipients += len(receipt.rcpts)
        self.octets += octets
        if self.ledger is not None:
            self.ledger.add(*identify(receipt.content), receipt.rcpts)
        if self.on_message is not None:
            self.on_message(receipt)
        if self.messages == self.plan.messages:
            self.finished.set()

    def fault(self, stage: str) -> Fault | None:
        """The fault that strikes now, if any."""
        for fault in self.plan.faults:
            if fault.stage == stage and (
                fault.probability >= 1.0 or self.chance.random() < fault.probability
            ):
                self.faults += 1
                return fault
        return None

    def hello_reply(self, tls: bool) -> bytes:
        lines = self._offered + (["STARTTLS"] if self.tls is not None and not tls else [])
        return "".join(
            f"250{' ' if line is lines[-1] else '-'}{line}\r\n" for line in lines
        ).encode()


class SinkSession(asyncio.Protocol):
    """One client."""

    __slots__ = (
        "_bdat", "_buffer", "_client", "_hello", "_in_data", "_last", "_left", "_lmtp", "_mail", "_octets", "_out",
        "_parts", "_paused", "_rcpt_lines", "_rcpts", "_rule", "_sink", "_tls", "_upgrade", "transport",
    )  # fmt: skip

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._rule = EOD_RULES[sink.plan.eod]
        self._buffer = b""  # what was not understood yet
        self._out: list[bytes] = []
        self._hello = ""
        self._lmtp = False
        self._tls = False
        self._in_data = False
        self._client = ""
        self._last = False
        self._left = -1  # octets of a chunk that are still to come; -1 = none
        self._paused = False  # an answer is being delayed
        self._upgrade: asyncio.Task[None] | None = None
        self._clear()

    def _clear(self) -> None:
        self._mail = ""
        self._rcpts: list[str] = []
        self._rcpt_lines: list[str] = []
        self._parts: list[bytes] = []
        self._octets = 0
        self._bdat = False

    # -- asyncio -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        if self._tls:
            return
        self._client = "{}:{}".format(*transport.get_extra_info("peername")[:2])
        self._sink.connections += 1
        self._sink.sessions.add(self)
        self._reply("connect", b"220 sink.example.test ESMTP\r\n")
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._sink.sessions.discard(self)
        if self._sink.ledger is not None:
            self._sink.ledger.flush()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._paused:
            self._work()

    # -- the dialog --------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._buffer and not self._paused and not self.transport.is_closing():
            if self._in_data:
                self._data()
            elif self._left >= 0:
                self._chunk()
            else:
                end = self._buffer.find(b"\n")
                if end < 0:
                    if len(self._buffer) > MAX_LINE_OCTETS:
                        self.transport.abort()
                    break
                line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
                self._command(line.rstrip(b"\r"))
        self._flush()

    def _flush(self) -> None:
        if self._out and not self._paused:
            out, self._out = self._out, []
            self.transport.write(b"".join(out))

    def _reply(self, stage: str, octets: bytes) -> bool:
        """Answer, unless a fault answers instead; False when the answer is negative or none at all."""
        fault = self._sink.fault(stage) if self._sink.plan.faults else None
        if fault is None:
            self._out.append(octets)
            return True
        if fault.drop:
            self._flush()
            self.transport.abort()
            return False
        if fault.code:
            enhanced = f"{fault.code // 100}.0.0 " if fault.code >= 400 else ""
            self._out.append(f"{fault.code} {enhanced}{stage} refused as told\r\n".encode())
            if fault.code == 421 or stage == "connect":
                self._flush()
                self.transport.close()
            return fault.code < 400
        self._flush()
        self._out.append(octets)
        self._paused = True
        asyncio.get_running_loop().call_later(fault.delay_s, self._resume)
        return True

    def _resume(self) -> None:
        self._paused = False
        if not self.transport.is_closing():
            self._flush()
            self._work()

    def _command(self, line: bytes) -> None:
        verb = line[:4].upper().decode("ascii", "replace")
        self._sink.commands[verb] += 1
        if verb == "MAIL":
            if self._reply("mail", b"250 2.1.0 Ok\r\n"):
                self._clear()
                self._mail = line[10:].strip().decode("utf-8", "surrogateescape")
        elif verb == "RCPT":
            if self._reply("rcpt", b"250 2.1.5 Ok\r\n"):
                argument = line[8:].strip().decode("utf-8", "surrogateescape")
                self._rcpt_lines.append(argument)
                self._rcpts.append(argument.partition(">")[0].removeprefix("<"))
        elif verb == "DATA":
            if not self._rcpts:
                self._out.append(b"503 5.5.1 No recipients\r\n")
            elif self._reply("data", b"354 Go ahead\r\n"):
                self._in_data = True
                self._parts = [FIRST_LINE_END]
        elif verb == "BDAT":
            self._begin_chunk(line)
        elif verb in ("EHLO", "HELO", "LHLO"):
            self._lmtp = verb == "LHLO"
            self._hello = line[5:].decode("utf-8", "replace")
            self._reply(
                "hello",
                self._sink.hello_reply(self._tls)
                if verb != "HELO"
                else b"250 sink.example.test\r\n",
            )
        elif verb == "RSET":
            self._clear()
            self._out.append(b"250 2.0.0 Ok\r\n")
        elif verb == "NOOP":
            self._out.append(b"250 2.0.0 Ok\r\n")
        elif verb == "QUIT":
            self._reply("quit", b"221 2.0.0 Bye\r\n")
            self._flush()
            if not self._paused:
                self.transport.close()
        elif line.upper() == b"STARTTLS" and self._sink.tls is not None and not self._tls:
            if self._reply("starttls", b"220 2.0.0 Go ahead\r\n"):
                self._buffer = b""  # RFC 3207 §6
                self._flush()
                self._upgrade = asyncio.get_running_loop().create_task(self._start_tls())
        else:
            self._out.append(b"500 5.5.1 Unknown command\r\n")

    async def _start_tls(self) -> None:
        context = self._sink.tls
        assert context is not None
        self._tls = True
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self.transport, self, context, server_side=True
            )
        except OSError:
            self.transport.abort()
            return
        if transport is not None:
            self.transport = transport

    # -- content -----------------------------------------------------------------------------------

    def _data(self) -> None:
        """Take content from the buffer, up to its end when that is there."""
        seam = self._parts.pop()  # looked at again: an end of data may lie over it
        window = seam + self._buffer
        found = self._rule.search(window)
        end = len(window) if found is None else found.start(1)
        self._octets += end - len(seam)
        if found is not None:
            self._parts.append(window[:end])
            self._buffer = window[found.end(1) :]
            self._in_data = False
            self._finish()
        elif self._octets > self._sink.plan.max_message_octets:
            self.transport.abort()
        else:
            cut = max(0, end - SEAM_OCTETS)
            if self._sink.keeps_content:
                self._parts.append(window[:cut])
            self._parts.append(window[cut:])
            self._buffer = b""

    def _begin_chunk(self, line: bytes) -> None:
        words = line.split()
        if len(words) < 2 or not words[1].isdigit():
            self._out.append(b"501 5.5.4 Bad chunk\r\n")
            self.transport.close()
            return
        self._bdat = True
        self._left = int(words[1])
        self._last = words[2:3] in ([b"LAST"], [b"last"])
        if not self._left:
            self._chunk()

    def _chunk(self) -> None:
        piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        self._left -= len(piece)
        self._octets += len(piece)
        if self._octets > self._sink.plan.max_message_octets:
            self.transport.abort()
            return
        if self._sink.keeps_content:
            self._parts.append(piece)
        if self._left:
            return
        self._left = -1
        if not self._rcpts:
            self._out.append(b"503 5.5.1 No recipients\r\n")
        elif self._last:
            self._finish()
        else:
            self._out.append(b"250 2.0.0 Ok\r\n")

    def _finish(self) -> None:
        """All of the content is there: answer, and hand it over for those who took it."""
        sink = self._sink
        content = b""
        if sink.keeps_content:
            content = b"".join(self._parts)
            if not self._bdat:
                content = STUFFED[sink.plan.eod].sub(rb"\1", content)[len(FIRST_LINE_END) :]
        answers = len(self._rcpts) if self._lmtp else 1  # RFC 2033 §4.2
        taken = []
        for index in range(answers):
            if self.transport.is_closing():
                break
            if self._reply("content", b"250 2.0.0 Ok\r\n") or self.transport.is_closing():
                taken.append(
                    index
                )  # dropped behind the content: it is here, and the client cannot know
        if taken:
            receipt = Receipt(
                client=self._client,
                hello=self._hello,
                protocol="LMTP" if self._lmtp else "SMTP",
                mail=self._mail,
                rcpts=[self._rcpts[index] for index in taken] if self._lmtp else self._rcpts,
                rcpt_lines=self._rcpt_lines,
                content=content,
                bdat=self._bdat,
                tls=self._tls,
            )
            sink.receive(receipt, self._octets)
        self._clear()

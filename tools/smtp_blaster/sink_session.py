"""One client of the sink: its dialog, as RFC 5321 has it and as the plan's faults have it.

    Owns      SinkSession
    Flow      data_received → _command or content → _reply (a fault may answer instead) → one write a read
    Limits    lines MAX_LINE_OCTETS, content plan.max_message_octets, an endless reply ENDLESS_OCTETS
    Errors    an unknown command is 500; whatever happens to one session does not touch another
    Standards RFC 5321, RFC 2033, RFC 2920, RFC 3030, RFC 3207, RFC 4954

The ledger has a message before its 250 leaves.  Until something more comes from the client, nobody
knows whether it has that 250: when the connection ends before, the ledger is told so (RFC 1047).
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from smtp_blaster.content import identify
from smtp_blaster.sink_auth import Exchange, decode, encode
from smtp_blaster.sink_content import DataReader
from smtp_blaster.sink_faults import Fault, Occasion
from smtp_blaster.sink_plan import Receipt

if TYPE_CHECKING:
    from smtp_blaster.sink import Sink

MAX_LINE_OCTETS = 65536
ENDLESS_OCTETS = 256 * 1024 * 1024
OVERLONG_OCTETS = 1024 * 1024
GARBAGE_OCTETS = 512
HOSTNAME = "sink.example.test"
GREETING = f"220 {HOSTNAME} ESMTP\r\n".encode()
UNDERSTOOD = ("", "reply", "delay", "drip", "sip", "pause")  # faults behind which a reply is one
WRONG_CODES = (b"354", b"250", b"220", b"199", b"999", b"25", b"2500", b"abc")
_ENDLESS = b"250-and so on\r\n" * 1024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s: close(2) sends RST


class SinkSession(asyncio.Protocol):
    """One client."""

    __slots__ = (
        "_bdat", "_buffer", "_chance", "_client", "_data", "_exchange", "_greeted", "_hello", "_last",
        "_left", "_lmtp", "_mail", "_mute", "_number", "_octets", "_out", "_parts", "_paused", "_rcpt_lines",
        "_rcpts", "_reverse_path", "_sink", "_sip", "_struck", "_then", "_tls", "_transfer", "_unconfirmed",
        "_user", "_writable", "transport",
    )  # fmt: skip

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._buffer = b""  # what was not understood yet
        self._out: list[bytes] = []
        self._hello = ""
        self._lmtp = False
        self._greeted = False
        self._tls = sink.plan.tls == "implicit"
        self._client = ""
        self._number = 0  # of the connection; with the seed it makes the chance of its faults
        self._chance: random.Random | None = None
        self._user = ""
        self._exchange: Exchange | None = None
        self._data: DataReader | None = None
        self._last = False
        self._left = -1  # octets of a chunk that are still to come; -1 = none
        self._paused = False  # an answer is being delayed
        self._mute = False  # nothing will be answered any more
        self._sip: Fault | None = None  # how slowly we read
        self._writable = asyncio.Event()
        self._writable.set()
        self._struck: Fault | None = None  # by which the last answer was not what it should be
        self._then: Callable[[], None] | None = None  # what is due when the delayed answer is out
        self._unconfirmed: list[tuple[str, list[str]]] = []  # taken; does the client have the reply?
        self._clear()

    def _clear(self) -> None:
        self._mail = ""
        self._reverse_path = ""
        self._rcpts: list[str] = []
        self._rcpt_lines: list[str] = []
        self._parts: list[bytes] = []
        self._octets = 0
        self._bdat = False
        self._transfer = False  # the fault of the content's way was drawn

    # -- asyncio -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        if self._greeted:  # a second time, by STARTTLS
            return
        self._greeted = True
        self._client = "{}:{}".format(*transport.get_extra_info("peername")[:2])
        self._number = self._sink.enter(self)
        if not self._number:
            self.transport.write(b"421 4.3.2 Too many connections\r\n")
            self.transport.close()
            return
        self._reply("greeting", GREETING)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        ledger = self._sink.ledger
        if ledger is not None:
            for message_id, rcpts in self._unconfirmed:
                ledger.unconfirmed(message_id, rcpts)
            ledger.flush()
        self._unconfirmed.clear()
        self._writable.set()
        self._sink.sessions.discard(self)

    def data_received(self, data: bytes) -> None:
        if self._mute:
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self._sip is not None:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(self._sip.draw_s(self._drawn()), self._read_on)
        if not self._paused and not self._sink.paused:
            if self._unconfirmed:
                self._unconfirmed.clear()
            self._work()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def resume(self) -> None:
        """Go on after a delay of this session, or a pause of the sink."""
        self._paused = False
        if not self.transport.is_closing() and not self._sink.paused:
            self._flush()
            self._do_then()
            self._work()

    def _when_answered(self, then: Callable[[], None]) -> None:
        """Call it once the answer that was just given is out."""
        self._flush()
        self._then = then
        if not self._paused and not self._sink.paused:
            self._do_then()

    def _do_then(self) -> None:
        then, self._then = self._then, None
        if then is not None and not self._mute:
            then()

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # -- answers -----------------------------------------------------------------------------------

    def _work(self) -> None:
        # A chunk of nothing may wait, too.
        while (self._buffer or self._left == 0) and not self._is_held():
            if self._data is not None:
                self._read_data(self._data)
            elif self._left >= 0:
                self._read_chunk()
            else:
                end = self._buffer.find(b"\n")
                if end < 0:
                    if len(self._buffer) > MAX_LINE_OCTETS:
                        self.transport.abort()
                    break
                line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
                self._command(line.rstrip(b"\r"))
        if self._out:
            self._flush()

    def _is_held(self) -> bool:
        return self._paused or self._mute or self._sink.paused or self.transport.is_closing()

    def _flush(self) -> None:
        if self._out and not self._paused and not self._sink.paused:
            out, self._out = self._out, []
            # Before the 250: a kill in between may repeat mail, never lose it.
            if self._sink.ledger is None or self._sink.keep_ledger():
                self.transport.write(b"".join(out))
            else:
                self.transport.abort()

    def _drawn(self) -> random.Random:
        """The chance of this connection: the same in every run with this seed."""
        if self._chance is None:
            self._chance = random.Random(f"{self._sink.plan.seed}/{self._number}")
        return self._chance

    def _fault(self, stage: str, rcpt: str = "", message: str = "") -> Fault | None:
        faults = self._sink.faults
        if not faults.any_at(stage):
            return None
        paths = [rcpt] if rcpt else self._rcpts
        if not message:  # greylisting knows a message by its client before there is an envelope
            envelope = (self._reverse_path, *paths)
            message = "\0".join(envelope) if any(envelope) else self._client.rpartition(":")[0]
        return faults.strike(stage, Occasion(self._reverse_path, paths, message), self._drawn())

    def _reply(self, stage: str, octets: bytes, rcpt: str = "", message: str = "") -> bool:
        """Answer, unless a fault answers instead; False when the client is not told to go on."""
        if not self._sink.has_faults:
            self._out.append(octets)
            return True
        fault = self._struck = self._fault(stage, rcpt, message)
        if fault is None:
            self._out.append(octets)
            return True
        does = fault.does
        if does == "reply":
            enhanced = f"{fault.code // 100}.0.0 " if fault.code >= 400 and not fault.text else ""
            text = fault.text or f"{stage} refused as told"
            self._out.append(f"{fault.code} {enhanced}{text}\r\n".encode())
            if fault.code == 421 or stage == "greeting":
                self._flush()
                self.transport.close()
            return fault.code < 400
        if does in ("drop", "reset", "half-close", "silent"):
            self._leave(does)
            return False
        if does in ("delay", "drip", "endless"):
            self._hold(fault, octets)
            return does != "endless"
        if does == "pause":
            self._out.append(octets)
            self._sink.pause(fault.draw_s(self._drawn()))
            return True
        if does == "down":
            self._sink.go_down(fault.draw_s(self._drawn()))
            return False
        if does == "sip":
            self._sip = fault
            self._out.append(octets)
            return True
        answer = self._misanswer(does, octets)
        self._out.append(answer)
        return answer[:1] == octets[:1]

    def _leave(self, how: str) -> None:
        """Never another octet from us."""
        if how == "reset":
            self._flush()
            self.reset()
            return
        if how == "drop":
            self._flush()
            self.transport.abort()
            return
        self._flush()
        self._mute = True
        self._buffer = b""
        if how == "half-close":
            # Not write_eof(): TLS has none, and the point is a FIN without a close_notify.
            with socket.socket(fileno=os.dup(self._socket().fileno())) as ours:
                ours.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with RST."""
        if not self.transport.is_closing():
            self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    def _socket(self) -> socket.socket:
        found: socket.socket = self.transport.get_extra_info("socket")
        return found

    def _hold(self, fault: Fault, octets: bytes) -> None:
        """Nothing else is done before this answer is out."""
        if self._paused and fault.does != "endless":  # LMTP: one of several is late already
            self._out.append(octets)
            return
        self._flush()
        self._paused = True
        loop = asyncio.get_running_loop()
        if fault.does == "delay":
            self._out.append(octets)
            loop.call_later(fault.draw_s(self._drawn()), self.resume)
        elif fault.does == "drip":
            self._drip(fault, octets)
        else:
            self._mute = True
            self._sink.keep(self._never_end())

    def _drip(self, fault: Fault, octets: bytes) -> None:
        if self.transport.is_closing():
            return
        if not octets:
            self.resume()
            return
        if not self._sink.paused and self._sink.keep_ledger():
            self.transport.write(octets[:1])
            octets = octets[1:]
        asyncio.get_running_loop().call_later(
            fault.draw_s(self._drawn()), self._drip, fault, octets
        )

    async def _never_end(self) -> None:
        for _ in range(ENDLESS_OCTETS // len(_ENDLESS)):
            await self._writable.wait()
            if self.transport.is_closing():
                return
            self.transport.write(_ENDLESS)
            await asyncio.sleep(0)
        self.transport.abort()

    def _misanswer(self, how: str, octets: bytes) -> bytes:
        if how == "garbage":
            chance = self._drawn()
            return chance.randbytes(chance.randint(1, GARBAGE_OCTETS))
        if how == "overlong":
            return octets[:4] + b"x" * OVERLONG_OCTETS + b"\r\n"
        if how == "wrong":
            codes = [code for code in WRONG_CODES if code != octets[:3]]
            return self._drawn().choice(codes) + b" Not what you think\r\n"
        if how == "twice":
            return octets + octets
        return octets[:-2] + (b"\n" if how == "bare-lf" else b"")

    # -- commands ----------------------------------------------------------------------------------

    def _command(self, line: bytes) -> None:
        if self._exchange is not None:
            self._respond(line)
            return
        verb = line[:4].upper().decode("ascii", "replace")
        self._sink.commands[verb] += 1
        if verb == "MAIL":
            self._on_mail(line)
        elif verb == "RCPT":
            self._on_rcpt(line)
        elif verb == "DATA":
            if not self._rcpts:
                self._out.append(b"503 5.5.1 No recipients\r\n")
            elif self._reply("data", b"354 Go ahead\r\n"):
                self._data = DataReader(self._sink.plan.eod, keeps=self._sink.keeps_content)
        elif verb == "BDAT":
            self._begin_chunk(line)
        elif verb in ("EHLO", "HELO", "LHLO"):
            self._lmtp = verb == "LHLO"
            self._hello = line[5:].decode("utf-8", "replace")
            self._clear()  # RFC 5321 §4.1.4
            short = f"250 {HOSTNAME}\r\n".encode()
            self._reply("hello", short if verb == "HELO" else self._sink.hello_reply(self._tls))
        elif verb == "RSET":
            self._clear()
            self._reply("rset", b"250 2.0.0 Ok\r\n")
        elif verb == "NOOP":
            self._reply("noop", b"250 2.0.0 Ok\r\n")
        elif verb == "QUIT":
            self._reply("quit", b"221 2.0.0 Bye\r\n")
            self._when_answered(self.transport.close)
        elif verb == "AUTH" and self._sink.accounts.mechanisms:
            self._on_auth(line)
        elif line.upper() == b"STARTTLS" and self._sink.offers_starttls and not self._tls:
            if self._reply("starttls", b"220 2.0.0 Go ahead\r\n"):
                self._buffer = b""  # RFC 3207 §6
                self._when_answered(lambda: self._sink.keep(self._start_tls()))
        else:
            self._out.append(b"500 5.5.1 Unknown command\r\n")

    def _on_mail(self, line: bytes) -> None:
        if self._sink.plan.require_auth and not self._user:
            self._out.append(b"530 5.7.0 Authentication required\r\n")  # RFC 4954 §6
            return
        if self._mail:
            self._clear()
        argument = line[10:].strip().decode("utf-8", "surrogateescape")
        self._reverse_path = _path(argument)
        if self._reply("mail", b"250 2.1.0 Ok\r\n"):
            self._mail = argument

    def _on_rcpt(self, line: bytes) -> None:
        if not self._mail:
            self._out.append(b"503 5.5.1 MAIL first\r\n")  # RFC 5321 §4.1.4
            return
        limit = self._sink.plan.max_recipients
        if limit and len(self._rcpts) >= limit:
            self._out.append(b"452 4.5.3 Too many recipients\r\n")  # RFC 5321 §4.5.3.1.10
            return
        argument = line[8:].strip().decode("utf-8", "surrogateescape")
        forward_path = _path(argument)
        if self._reply("rcpt", b"250 2.1.5 Ok\r\n", rcpt=forward_path):
            self._rcpt_lines.append(argument)
            self._rcpts.append(forward_path)

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

    def _on_auth(self, line: bytes) -> None:
        words = line.split()
        mechanism = words[1].decode("ascii", "replace").upper() if len(words) > 1 else ""
        if self._user:
            self._out.append(b"503 5.5.1 Authenticated already\r\n")
        elif mechanism not in self._sink.accounts.mechanisms:
            self._out.append(b"504 5.5.4 Unknown mechanism\r\n")
        else:
            initial = decode(words[2]) if len(words) > 2 else None
            if len(words) > 2 and initial is None:
                self._out.append(b"501 5.5.2 Not base64\r\n")
                return
            self._exchange = self._sink.accounts.begin(mechanism, initial)
            self._challenge(None)

    def _respond(self, line: bytes) -> None:
        response = decode(line)
        if response is None:  # "*", too: RFC 4954 §4
            self._exchange = None
            self._out.append(b"501 5.5.2 Given up\r\n")
        else:
            self._challenge(response)

    def _challenge(self, response: bytes | None) -> None:
        exchange = self._exchange
        assert exchange is not None
        try:
            challenge = next(exchange) if response is None else exchange.send(response)
        except StopIteration as end:
            self._exchange = None
            if not end.value:
                self._out.append(b"535 5.7.8 Credentials invalid\r\n")
            elif self._reply("auth", b"235 2.7.0 Authenticated\r\n"):
                self._user = end.value
        else:
            self._out.append(b"334 " + encode(challenge) + b"\r\n")

    # -- content -----------------------------------------------------------------------------------

    def _on_the_way(self) -> bool:
        """Draw the fault that strikes within the content, once a message; False when it ended all."""
        if self._transfer or not self._sink.has_faults:
            return True
        self._transfer = True
        fault = self._fault("transfer")
        if fault is None:
            return True
        if fault.does == "sip":
            self._sip = fault
        elif fault.does == "pause":
            self._sink.pause(fault.draw_s(self._drawn()))
        elif fault.does == "down":
            self._sink.go_down(fault.draw_s(self._drawn()))
        elif fault.does == "reply":
            text = fault.text or "refused within the content as told"
            self._out.append(f"{fault.code} {text}\r\n".encode())
            self._flush()
            self.transport.close()
        else:
            self._leave(fault.does)
        return not self._is_held()

    def _read_data(self, reader: DataReader) -> None:
        """Take content from the buffer, up to its end when that is there."""
        if not self._on_the_way():
            return
        rest = reader.feed(self._buffer)
        if rest is not None:
            self._buffer = rest
            self._data = None
            self._octets = reader.octets
            self._finish(reader.content() if self._sink.keeps_content else b"")
        elif reader.octets > self._sink.plan.max_message_octets:
            self.transport.abort()
        else:
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
            self._read_chunk()

    def _read_chunk(self) -> None:
        if not self._on_the_way():
            return
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
            self._parts.clear()
            self._octets = 0
            self._out.append(b"503 5.5.1 No recipients\r\n")
        elif self._last:
            self._finish(b"".join(self._parts))
        else:
            self._reply("data", b"250 2.0.0 Ok\r\n")

    def _finish(self, content: bytes) -> None:
        """All of the content is there: hand it over for those who take it, and answer."""
        sink = self._sink
        message_id, digest = identify(content) if sink.identifies else ("", "")
        taken: list[int] = []
        can_know = True
        # RFC 2033 §4.2: with LMTP a reply for each recipient.
        for index in range(len(self._rcpts) if self._lmtp else 1):
            if self.transport.is_closing() or self._mute:
                break
            rcpt = self._rcpts[index] if self._lmtp else ""
            self._reply("content", b"250 2.0.0 Ok\r\n", rcpt, message_id)
            does = self._struck.does if self._struck is not None else ""
            # Refused is what a negative reply says.  After anything else it is here.
            if self._struck is None or does != "reply" or self._struck.code < 400:
                taken.append(index)
                can_know = can_know and does in UNDERSTOOD
        if taken:
            rcpts = [self._rcpts[index] for index in taken] if self._lmtp else self._rcpts
            sink.receive(rcpts, self._octets, message_id, digest)
            if sink.on_message is not None:
                sink.on_message(self._receipt(rcpts, content))
            if sink.ledger is None:
                pass  # nobody asks what the client knows
            elif can_know:
                self._unconfirmed.append((message_id, rcpts))
            else:
                sink.ledger.unconfirmed(message_id, rcpts)
        self._clear()

    def _receipt(self, rcpts: list[str], content: bytes) -> Receipt:
        return Receipt(
            client=self._client,
            hello=self._hello,
            protocol="LMTP" if self._lmtp else "SMTP",
            mail=self._mail,
            rcpts=rcpts,
            rcpt_lines=self._rcpt_lines,
            content=content,
            bdat=self._bdat,
            tls=self._tls,
            user=self._user,
        )


def _path(argument: str) -> str:
    """The path of MAIL's or RCPT's argument, without brackets and parameters."""
    return argument.partition(">")[0].removeprefix("<")

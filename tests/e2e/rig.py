"""A sender, a gateway and next hops that do as they are told: what the tests of a message's whole way share.

Owns      NextHop (an SMTP or LMTP server whose every reply can be chosen), Sender, Gateway
Limits    every wait ends after WAIT_S; close() leaves no thread that matters
Standards RFC 5321, RFC 2033, RFC 2920, RFC 3030, RFC 3207; XCLIENT of Postfix
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from harness import BASE, Client, RunningWorker

from gateway.queue.operations import Operations
from gateway.worker_link import KeyMaterial, Reload

WAIT_S = 60.0
EVERYTHING = (
    "PIPELINING",
    "8BITMIME",
    "SMTPUTF8",
    "CHUNKING",
    "BINARYMIME",
    "ENHANCEDSTATUSCODES",
    "DSN",
    "SIZE 1000000000",
)
PLAIN = ("PIPELINING", "ENHANCEDSTATUSCODES")
DROP = "DROP"  # in place of a reply: the connection is reset (what is under way either way is lost)
CLOSE = "CLOSE"  # in place of a reply: the connection is closed

# A reply, or what makes one of (session, argument); None: as ever.
Answer = str | Callable[["Session", str], str | None]


@dataclass
class Mail:
    """One message as a next hop took it."""

    mail: str  # argument of MAIL, with its parameters
    rcpts: list[str]  # arguments of RCPT
    content: bytes
    bdat: bool
    client: str  # address it came from
    helo: str
    tls: bool
    xclient: str  # arguments of the last XCLIENT
    session: Session

    @property
    def to(self) -> list[str]:
        return [rcpt.partition(">")[0].removeprefix("<") for rcpt in self.rcpts]

    @property
    def body(self) -> bytes:
        """The content without the Received field of ours, and what was in it before."""
        return without_received(self.content)

    @property
    def message(self) -> EmailMessage:
        message = message_from_bytes(self.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        return message


def without_received(content: bytes) -> bytes:
    """Without the one field that we put on top."""
    assert content.startswith(b"Received: "), content[:80]
    lines = content.split(b"\r\n")
    count = 1
    while lines[count][:1] in (b"\t", b" "):
        count += 1
    return content[sum(len(line) + 2 for line in lines[:count]) :]


@dataclass(eq=False)
class Session:
    """One connection to a NextHop."""

    hop: NextHop
    sock: Any
    client: str
    buffer: bytes = b""
    helo: str = ""
    tls: bool = False
    broken: bool = False  # we broke it off: replies of ours may have been lost
    xclient: str = ""
    mail: str = ""
    rcpts: list[str] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)

    def run(self) -> None:
        with contextlib.suppress(OSError, ConnectionError, ssl.SSLError):
            if self.hop.tls is not None and self.hop.implicit_tls:
                self.sock = self.hop.tls.wrap_socket(self.sock, server_side=True)
                self.tls = True
            if self.reply("connect", "", "220 hop.example.test ESMTP"):
                while self.command(self.line().decode("utf-8", "surrogateescape")):
                    pass
        with contextlib.suppress(OSError):
            self.sock.close()

    def line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            self.fill()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    def fill(self) -> None:
        data = self.sock.recv(262_144)
        if not data:
            raise ConnectionError
        self.buffer += data

    def reply(self, stage: str, argument: str, usual: str) -> bool:
        """Send the reply to this stage; True when it was positive."""
        text = self.choose(stage, argument, usual)
        self.say(text)
        return text[:1] == usual[:1]

    def choose(self, stage: str, argument: str, usual: str) -> str:
        key = argument.partition(">")[0].removeprefix("<").lower()
        answer = self.hop.replies.get((stage, key), self.hop.replies.get(stage))
        text = answer(self, argument) if callable(answer) else answer
        return text or usual

    def say(self, text: str) -> None:
        if text in (DROP, CLOSE) or text.startswith("421"):
            self.broken = True
        if text == DROP:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise ConnectionError
        if text == CLOSE:
            raise ConnectionError
        self.sock.sendall(text.encode("utf-8", "surrogateescape") + b"\r\n")
        if text.startswith("421"):
            raise ConnectionError

    def command(self, line: str) -> bool:
        hop = self.hop
        hop.commands.append(line)
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        if verb in ("EHLO", "LHLO", "HELO"):
            self.helo = argument
            offers = [*hop.offers]
            if hop.tls is not None and not self.tls:
                offers.append("STARTTLS")
            words = ["hop.example.test", *offers] if verb != "HELO" else ["hop.example.test"]
            lines = [f"250-{word}" for word in words]
            lines[-1] = lines[-1].replace("250-", "250 ", 1)
            self.reply(verb, "", "\r\n".join(lines))
        elif verb == "MAIL":
            if self.reply("MAIL", argument[5:], "250 2.1.0 ok"):
                self.mail = argument[5:]
                self.rcpts, self.chunks = [], []
        elif verb == "RCPT":
            if not self.mail:
                self.sock.sendall(b"503 5.5.1 MAIL first\r\n")
            elif self.reply("RCPT", argument[3:], "250 2.1.5 ok"):
                self.rcpts.append(argument[3:])
        elif verb == "DATA":
            if not self.rcpts:
                self.sock.sendall(b"503 5.5.1 no recipients\r\n")
            elif self.reply("DATA", "", "354 go ahead"):
                self.data()
        elif verb == "BDAT":
            size, _, last = argument.partition(" ")
            self.chunk(int(size), last.upper() == "LAST")
        elif verb == "STARTTLS":
            if self.reply("STARTTLS", "", "220 2.0.0 ready"):
                assert hop.tls is not None and not self.buffer
                self.sock = hop.tls.wrap_socket(self.sock, server_side=True)
                self.tls = True
        elif verb == "XCLIENT":
            if self.reply("XCLIENT", argument, "220 hop.example.test ESMTP"):
                self.xclient = argument
        elif verb == "RSET":
            self.mail, self.rcpts, self.chunks = "", [], []
            self.reply("RSET", "", "250 2.0.0 ok")
        elif verb == "QUIT":
            self.reply("QUIT", "", "221 2.0.0 bye")
            return False
        else:
            self.sock.sendall(b"500 5.5.2 what?\r\n")
        return True

    def data(self) -> None:
        """RFC 5321 §4.5.2: read to the final dot, take the others away."""
        pieces, tail = [], b"\r\n"
        while True:
            window = tail + self.buffer
            end = window.find(b"\r\n.\r\n")
            if end >= 0:
                pieces.append(window[: end + 2])
                self.buffer = window[end + 5 :]
                break
            keep = min(4, len(window))
            pieces.append(window[: len(window) - keep])
            tail, self.buffer = window[len(window) - keep :], b""
            self.fill()
        content = b"".join(pieces).replace(b"\r\n.", b"\r\n")[2:]
        self.finish(content, bdat=False)

    def chunk(self, size: int, last: bool) -> None:
        pieces, left = [], size
        while left:
            if not self.buffer:
                self.fill()
            piece, self.buffer = self.buffer[:left], self.buffer[left:]
            pieces.append(piece)
            left -= len(piece)
        self.chunks += pieces
        if not self.rcpts:
            self.sock.sendall(b"503 5.5.1 no recipients\r\n")
        elif last:
            content, self.chunks = b"".join(self.chunks), []
            self.finish(content, bdat=True)
        else:
            self.sock.sendall(b"250 2.0.0 ok\r\n")

    def finish(self, content: bytes, *, bdat: bool) -> None:
        hop = self.hop
        each = list(self.rcpts) if hop.lmtp else self.rcpts[:1]  # RFC 2033 §4.2
        answers = []
        for rcpt in each:
            answers.append(self.choose("content", rcpt, "250 2.0.0 kept"))
            if answers[-1] in (DROP, CLOSE) or answers[-1].startswith("421"):
                break  # nobody hears of those behind
        taken = [rcpt for rcpt, text in zip(each, answers, strict=False) if text[:1] == "2"]
        if taken:  # it is there before the client hears so
            rcpts = taken if hop.lmtp else list(self.rcpts)
            mail = Mail(
                self.mail,
                rcpts,
                content,
                bdat,
                self.client,
                self.helo,
                self.tls,
                self.xclient,
                self,
            )
            with hop.changed:
                hop.received.append(mail)
                hop.changed.notify_all()
        for text in answers:
            self.say(text)
        self.mail, self.rcpts = "", []


class NextHop:
    """An SMTP server, or with lmtp=True an LMTP server, that keeps what it gets.

    replies: {"RCPT": "550 5.1.1 no", ("RCPT", "bob@x"): …, "content": …, "connect": DROP, …}
    """

    def __init__(
        self,
        offers: tuple[str, ...] = EVERYTHING,
        replies: Mapping[Any, Answer] | None = None,
        *,
        lmtp: bool = False,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        path: str = "",
        port: int = 0,
    ) -> None:
        self.offers = offers
        self.replies: dict[Any, Answer] = dict(replies or {})
        self.lmtp = lmtp
        self.tls = tls
        self.implicit_tls = implicit_tls
        self.received: list[Mail] = []
        self.commands: list[str] = []
        self.clients: list[str] = []  # of every connection
        self.open = self.most_open = 0
        self.changed = threading.Condition()
        self._sessions: set[Session] = set()
        if path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self.port = 0
            self.url = f"lmtp+unix:{path}"
        else:
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("127.0.0.1", port))
            self.port = self._listener.getsockname()[1]
            scheme = "lmtp" if lmtp else "smtps" if implicit_tls else "smtp"
            self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError:
                return
            session = Session(self, sock, address[0] if address else "unix")
            with self.changed:
                self._sessions.add(session)
                self.clients.append(session.client)
                self.open += 1
                self.most_open = max(self.most_open, self.open)
            threading.Thread(target=self._serve, args=(session,), daemon=True).start()

    def _serve(self, session: Session) -> None:
        try:
            session.run()
        finally:
            with self.changed:
                self.open -= 1
                self._sessions.discard(session)
                self.changed.notify_all()

    def wait(self, count: int = 1) -> list[Mail]:
        """The messages so far, as soon as there are so many."""
        with self.changed:
            ok = self.changed.wait_for(lambda: len(self.received) >= count, WAIT_S)
            assert ok, f"{len(self.received)} of {count} messages at {self.url}"
            return list(self.received)

    def said(self, verb: str) -> list[str]:
        return [line for line in self.commands if line.upper().startswith(verb.upper())]

    def hang_up(self) -> None:
        """Close every connection."""
        with self.changed:
            for session in self._sessions:
                with contextlib.suppress(OSError):
                    session.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Nobody listens there any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()


class Sender(Client):
    """A client that says hello and sends whole transactions."""

    def __init__(self, port: int, hello: str = "EHLO client.example", address: str = "") -> None:
        source = (address, 0) if address else None
        self.sock = socket.create_connection(
            ("127.0.0.1", port), timeout=WAIT_S, source_address=source
        )
        self._begin(hello)

    @classmethod
    def over(cls, path: str, hello: str) -> Sender:
        """Over a unix socket."""
        sender = cls.__new__(cls)
        sender.sock = socket.socket(socket.AF_UNIX)
        sender.sock.settimeout(WAIT_S)
        sender.sock.connect(path)
        sender._begin(hello)
        return sender

    def _begin(self, hello: str) -> None:
        self.buffer = b""
        if hello:
            assert self.code() == 220
            assert self.command(hello)[-1].startswith("250")

    def envelope(self, sender: str, rcpts: list[str], mail: str = "") -> None:
        """MAIL and RCPT; rcpts may carry parameters behind a space."""
        reply = self.command(f"MAIL FROM:<{sender}>{mail and ' ' + mail}")
        assert reply[-1].startswith("250"), reply
        for rcpt in rcpts:
            mailbox, _, parameters = rcpt.partition(" ")
            reply = self.command(f"RCPT TO:<{mailbox}>{parameters and ' ' + parameters}")
            assert reply[-1].startswith("250"), reply

    def submit(
        self,
        content: bytes,
        rcpts: str | list[str] = "bob@rcpt.test",
        sender: str = "alice@sender.test",
        mail: str = "",
        *,
        bdat: int = 0,
    ) -> str:
        """One transaction by DATA, or by BDAT in pieces of `bdat` octets; the final reply's last line."""
        self.envelope(sender, [rcpts] if isinstance(rcpts, str) else rcpts, mail)
        if not bdat:
            assert self.command("DATA")[-1].startswith("354")
            self.send(dotted(content))
            return self.reply()[-1]
        for start in range(0, len(content), bdat):
            piece = content[start : start + bdat]
            last = start + bdat >= len(content)
            self.send(b"BDAT %d%s\r\n" % (len(piece), b" LAST" if last else b"") + piece)
            reply = self.reply()[-1]
            if not last:
                assert reply.startswith("250"), reply
        return reply


def dotted(content: bytes) -> bytes:
    """RFC 5321 §4.5.2, the obvious way."""
    octets = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
    return octets + (b".\r\n" if not octets or octets.endswith(b"\r\n") else b"\r\n.\r\n")


def queue_id(reply: str) -> str:
    """Of a 250 that says "queued as …"."""
    return reply.partition("queued as ")[2].partition(" ")[0]


class Gateway(RunningWorker):
    """A worker with one SMTP listener in front, whose queue can be asked and told."""

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def queue(self) -> Operations:
        return Operations(self.worker.scheduler)

    def retry(self) -> None:
        """What is deferred is tried now."""
        self.call(self.queue.retry)

    def reload(self) -> None:
        """As after SIGHUP, with the same listeners."""
        reload = Reload(self.config, KeyMaterial.read(self.config), self.worker._sockets)
        assert self.call(self.worker.reload, reload) is None

    def left(self) -> int:
        """Messages that the spool still has."""
        return int(self.call(lambda: self.worker.spool.count))

    def wait_quiet(self) -> None:
        """Whatever can be tried has been tried."""
        wait_until(
            lambda: (
                not any(
                    lane["active"] or lane["ready"] for lane in self.call(self.queue.stats)["lanes"]
                )
            ),
            "quiet lanes",
        )

    def wait_empty(self) -> None:
        """Every message has come to its end, reports and all."""
        wait_until(lambda: not self.left(), "an empty spool")

    def send(self, content: bytes, *args: Any, **options: Any) -> str:
        """Submit it on a connection of its own; the queue id."""
        with Sender(self.port) as sender:
            reply = sender.submit(content, *args, **options)
        assert reply.startswith("250"), reply
        return queue_id(reply)

    def events(self, event: str, queue_id: str = "") -> list[dict[str, Any]]:
        return [
            line
            for line in self.log()
            if line["event"] == event and queue_id in ("", line.get("queue_id"))
        ]


def wait_until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.01)


def route(next_hop: str | list[str], *domains: str, **settings: Any) -> str:
    """[[route]]; a setting is a string, a number, a bool, a list or a dict of strings."""
    hops = [next_hop] if isinstance(next_hop, str) else next_hop
    lines = [f"domains = {list(domains) or ['*']}", f"next_hop = {hops}"]
    lines += [f"{key} = {_toml(value)}" for key, value in settings.items()]
    return "[[route]]\n" + "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = "{text}"' for key, text in value.items()) + "}"
    return repr(value)


LISTEN = '[[listen]]\nservice = "smtp"\naddress = "127.0.0.1:PORT"\n'
QUICK = "[queue]\nretry_s = [1.0]\nconnect_retry_s = [0.2]\n"


class Lab:
    """Makes next hops and gateways, and takes them down when the test ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = contextlib.ExitStack()

    def hop(self, *args: Any, **options: Any) -> NextHop:
        hop = NextHop(*args, **options)
        self._stack.callback(hop.close)
        return hop

    def gateway(self, *routes: str, listen: str = LISTEN, extra: str = QUICK) -> Gateway:
        gateway = Gateway(self.directory, "\n".join((extra, listen, *routes)), BASE)
        return self._stack.enter_context(gateway)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()

"""One connection of the source, whatever it speaks: connected, set up, given work one piece after the other, ended.

Owns      Speaker, what session.Session (who sends) and retrieval.RetrievalSession (who reads) share
Flow      Source → connection_made → greeting, hello() → _ready() → begin() … _next() → quit()
Limits    is_overdue(): the source's sweep ends it when what it waits for takes longer than plan.timeout_s
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING

from smtp_blaster.supply import Message, Supply
from smtp_blaster.tally import CONNECT, GREETING, NAMES, QUIT, Tally

if TYPE_CHECKING:
    from smtp_blaster.source import Source

NOTHING = -1  # nothing is awaited
LOGOUT = NAMES.index("logout")
FAREWELLS = (QUIT, LOGOUT)


class Speaker:
    """An asyncio.Protocol in all but its base class; methods of one line are the subclasses'."""

    __slots__ = (
        "_began_ns", "_first", "_message", "_remaining", "_sent_ns", "_source", "_stage", "_supply", "_tally",
        "closed", "done", "is_secure", "transport",
    )  # fmt: skip

    def __init__(self, source: Source, first: Message | None) -> None:
        self._source = source
        self._supply: Supply = source.supply
        self._tally: Tally = source.tally
        self._remaining = source.plan.per_connection or -1  # pieces of work this connection may still begin
        self._began_ns = monotonic_ns()
        self._stage = NOTHING  # what the next answer is to
        self._sent_ns = 0  # when that was sent
        self._first: Message | None = first  # taken, but not begun
        self._message: Message | None = None  # the one that is being answered
        self.is_secure = False
        self.done = 0  # answered to the end
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- asyncio -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        now = monotonic_ns()
        self._tally.record(CONNECT, now - self._began_ns)
        self._stage, self._sent_ns = GREETING, now
        self.transport = transport  # type: ignore[assignment]

    def pause_writing(self) -> None:
        """What is written is one message or command at a time."""

    def resume_writing(self) -> None:
        """As above."""

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Answers, whole or not."""

    # -- what the source asks ----------------------------------------------------------------------

    def greet(self) -> None:
        """TLS stands: the greeting is awaited from now on, unless it came already."""
        if self._stage == GREETING:
            self._sent_ns = monotonic_ns()

    def hello(self) -> None:
        """TLS stands behind STARTTLS or STLS: the set-up goes on."""

    def unbegun(self) -> Message | None:
        """The work that it was opened for, when that was never begun."""
        message, self._first = self._first, None
        return message

    @property
    def is_ready(self) -> bool:
        """The set-up is done."""
        return self._first is None

    def is_overdue(self, now_ns: int, timeout_ns: int, quit_ns: int) -> bool:
        """The answer that is due next takes too long; so does the one to the end."""
        if self._stage == NOTHING:
            return False
        waited_ns = now_ns - self._sent_ns
        if self._stage in FAREWELLS:
            return waited_ns > quit_ns
        if waited_ns > timeout_ns:
            self._source.trouble(f"{NAMES[self._stage]}: no answer in {timeout_ns / 1e9:g} s")
        return waited_ns > timeout_ns

    def begin(self, message: Message) -> None:
        """Do this.  The connection is idle."""

    def abort(self) -> None:
        """Now; connection_lost() comes later."""
        self.transport.abort()

    def quit(self) -> None:
        """Say goodbye; the answer ends it."""

    # -- work --------------------------------------------------------------------------------------

    def _ready(self) -> None:
        """The set-up is done."""
        self._source.on_ready()
        message, self._first = self._first, None
        if message is None:
            self._next()
        else:
            self.begin(message)

    def _next(self) -> None:
        """Begin another piece of work, wait for one, or end the connection."""
        message = self._supply.take() if self._remaining else None
        if message is not None:
            self.begin(message)
        elif self._remaining:
            self._source.park(self)
        else:
            self.quit()

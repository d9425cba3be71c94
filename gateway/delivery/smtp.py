"""The agent for next hops that speak SMTP or LMTP: a pool of connections, and the deliveries that wait for one.

    Owns      SmtpAgent
    Flow      submit → idle connection, else a new one, else behind a running transaction → outcomes → done
    Limits    set_concurrency() connections; `depth` deliveries on each, and one for each that may still be opened
    Errors    what the next hop says, and what the network does, are Outcomes; nothing is raised
    Blocking  never
    Standards RFC 5321 §4.2.1, §4.5.4; RFC 2033; RFC 9422
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from gateway.delivery.agent import (
    BOUNCED,
    DEFERRED,
    DELIVERED,
    RELAYED,
    Done,
    Job,
    Listener,
    Outcome,
)
from gateway.delivery.negotiate import Delivery
from gateway.delivery.smtp_connection import SmtpConnection, SmtpSettings
from gateway.protocol.smtp_client import ACCEPTED, MAYBE_TWICE, PERMANENT, Verdict

if TYPE_CHECKING:
    from gateway.queue.routing import NextHop

logger = logging.getLogger(__name__)

REOPEN_S = 1.0  # while others of its connections work, a next hop that refused one is left alone for so long


class SmtpAgent:
    """An Agent for smtp, smtps, lmtp and lmtp+unix."""

    def __init__(self, next_hop: NextHop, settings: SmtpSettings, listener: Listener) -> None:
        self.name = next_hop.url
        self.host = next_hop.host
        self.port = next_hop.port
        self.path = next_hop.path if next_hop.scheme == "lmtp+unix" else ""
        self.lmtp = next_hop.scheme in ("lmtp", "lmtp+unix")
        self.implicit_tls = next_hop.scheme == "smtps"
        self.is_closing = False
        self.is_giving_up = False  # the next connection that is free is to be closed: others have none
        self._accepted = DELIVERED if self.lmtp else RELAYED
        self._settings = settings
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._concurrency = 1
        self._recipients_max = 0
        self._waiting: deque[Delivery] = deque()
        self._connections: set[SmtpConnection] = set()  # that take deliveries, or soon will
        self._retired: set[SmtpConnection] = set()  # that finish what they have
        # Connections that could begin a delivery when there was none, in the order of their last use.
        self._idle: dict[SmtpConnection, None] = {}
        self._roomy: dict[SmtpConnection, None] = {}  # behind a running one
        self._opening = 0
        self._slots = 0  # of all connections
        self._busy = 0  # of the slots
        self._reopen_at = 0.0

    # -- Agent --------------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        if self.is_closing:
            return 0
        unopened = max(0, self._concurrency - len(self._connections))
        return max(0, self._slots + unopened - self._busy - len(self._waiting))

    @property
    def recipients_max(self) -> int:
        return self._recipients_max

    @property
    def connections(self) -> int:
        return len(self._connections) + len(self._retired)

    def submit(self, job: Job, done: Done) -> None:
        if self.is_closing:
            done(job, ())
            return
        self._waiting.append(Delivery(job, done))
        self._dispatch()

    def set_concurrency(self, connections: int) -> None:
        self._concurrency = connections
        if len(self._connections) > connections:
            self._roomy.clear()
            for connection in [c for c in self._connections if c.is_idle]:
                if len(self._connections) <= connections:
                    break
                self.retire(connection)
                connection.drain()
        self._dispatch()

    def close(self) -> None:
        self.is_closing = True
        self._settings.budget.forget(self)
        self._give_back()
        for connection in list(self._connections):
            if connection.machine.is_ready:
                self.retire(connection)
                connection.drain()
            else:
                connection.abort()

    # -- which delivery goes where ------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        waiting = self._waiting
        while waiting:
            full = len(self._connections) >= self._concurrency or (
                bool(self._connections) and self._loop.time() < self._reopen_at
            )
            connection = self._find(full and not waiting[0].returned)
            if connection is not None:
                self._begin(connection)
                if not connection.is_retired and connection.can_begin:
                    self._list(connection)
            elif full or self._opening >= len(waiting) or not self._settings.budget.take(self):
                return
            else:
                self._opening += 1
                self._slots += 1
                self._connections.add(SmtpConnection(self, self._settings))

    def _find(self, behind: bool) -> SmtpConnection | None:
        """An idle connection; with `behind`, else one that may take a transaction behind another."""
        idle = self._idle
        while idle:
            connection, _ = idle.popitem()  # the one used last: those that are not needed get old, and close
            if connection.can_begin:
                return connection
        roomy = self._roomy
        while behind and roomy:
            connection, _ = roomy.popitem()
            if connection.can_begin:
                return connection
        return None

    def _begin(self, connection: SmtpConnection) -> None:
        delivery = self._waiting.popleft()
        self._idle.pop(connection, None)
        connection.held += 1
        self._busy += 1
        connection.begin(delivery)
        if connection.machine.is_spent:
            self.retire(connection)

    def _list(self, connection: SmtpConnection) -> None:
        if connection.held:
            self._roomy[connection] = None
        else:
            self._roomy.pop(connection, None)
            self._idle[connection] = None

    def _give_back(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for delivery in waiting:
            delivery.done(delivery.job, ())

    def retire(self, connection: SmtpConnection) -> None:
        """The connection takes no further delivery: another may be opened in its place."""
        if not connection.is_retired:
            connection.is_retired = True
            self._connections.discard(connection)
            self._retired.add(connection)
            self._idle.pop(connection, None)
            self._roomy.pop(connection, None)
            self._slots -= connection.slots
            self._busy -= connection.held
            if not connection.is_ready:
                self._opening -= 1

    # -- what the budget asks -----------------------------------------------------------------------------------------

    def give_up_idle(self) -> bool:
        for connection in self._idle:
            if connection.is_idle:
                self.retire(connection)
                connection.drain()
                return True
        return False

    def give_up_next(self) -> None:
        self.is_giving_up = True

    def on_budget(self) -> None:
        self._dispatch()

    # -- what connections report --------------------------------------------------------------------------------------

    def on_ready(self, connection: SmtpConnection) -> None:
        """EHLO and all that belongs to it is done."""
        if connection.is_retired:
            return
        connection.is_ready = True
        self._opening -= 1
        offered = connection.machine.capabilities
        self._recipients_max = offered.recipients_max
        if offered.pipelining:
            self._slots += self._settings.depth - connection.slots
            connection.slots = self._settings.depth
        self.on_room(connection)
        self._listener.on_ready()

    def on_room(self, connection: SmtpConnection) -> None:
        """The connection can begin a delivery."""
        if self.is_giving_up and (connection.machine.finished or not self._waiting):
            self.is_giving_up = False  # only after it was of use: else nobody would ever get on
            self.retire(connection)
            connection.drain()
            return
        if len(self._connections) > self._concurrency:
            if connection.held == 0:
                self.retire(connection)
                connection.drain()
            return
        waiting = self._waiting
        room = True
        while room and waiting:
            if connection.held and (len(self._connections) < self._concurrency or waiting[0].returned):
                break  # those that wait have got a connection of their own coming
            self._begin(connection)
            room = not connection.is_retired and connection.can_begin
        if room and not connection.is_retired:
            self._list(connection)

    def on_done(self, connection: SmtpConnection, delivery: Delivery) -> None:
        """The transaction has all its verdicts."""
        self._release(connection)
        transaction = delivery.transaction
        assert transaction is not None
        verdicts = transaction.verdicts
        if delivery.positions is None and len(verdicts) == 1:
            outcomes = [self._outcome(connection, delivery, verdicts[0])]
        else:
            outcomes = self._outcomes(connection, delivery, verdicts)
        delivery.done(delivery.job, outcomes)

    def on_settled(self, connection: SmtpConnection, delivery: Delivery, verdict: Verdict) -> None:
        """There is no transaction: the verdict stands for all that were not refused before."""
        self._release(connection)
        delivery.positions = []
        for position in range(len(delivery.job.recipients)):
            delivery.refused.setdefault(position, verdict)
        delivery.done(delivery.job, self._outcomes(connection, delivery, []))

    def on_returned(self, connection: SmtpConnection, delivery: Delivery, verdict: Verdict) -> None:
        """The peer never answered a word of it: once, another connection may take it."""
        queue_id = delivery.job.queue_id
        if not delivery.returned and verdict[3].endswith(MAYBE_TWICE):
            logger.warning("%s: %s", connection.peer, verdict[3], extra={"queue_id": queue_id})
        if delivery.returned:
            self.on_settled(connection, delivery, verdict)
            return
        self._release(connection)
        if self.is_closing:
            delivery.done(delivery.job, ())
            return
        delivery.returned = True
        self._waiting.appendleft(delivery)
        self._loop.call_soon(self._dispatch)
        if connection.is_retired:  # on_gone() may have been before: the content was still being read
            self._dispatch()

    def on_gone(self, connection: SmtpConnection, failure: Verdict | None) -> None:
        """The connection is closed; with `failure` it never became ready."""
        self.retire(connection)
        self._retired.discard(connection)
        self._settings.budget.give()
        if failure is not None:
            self._reopen_at = self._loop.time() + REOPEN_S
            if not self.is_closing:
                _, code, enhanced, text = failure
                if code >= 500:  # no recipient was refused: all we know is that this host does not want us now
                    enhanced = "4" + enhanced[1:]
                self._listener.on_connect_failed(
                    Outcome(DEFERRED, code, enhanced, text, connection.peer, connection.tls)
                )
            if not self._connections:
                self._give_back()
                return
        self._dispatch()

    def _release(self, connection: SmtpConnection) -> None:
        connection.held -= 1
        if not connection.is_retired:
            self._busy -= 1

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def _outcome(self, connection: SmtpConnection, delivery: Delivery, verdict: Verdict | None) -> Outcome:
        assert verdict is not None
        kind, code, enhanced, text = verdict
        if kind == ACCEPTED:
            state = self._accepted
        else:
            state = BOUNCED if kind == PERMANENT else DEFERRED
        return Outcome(
            state,
            code,
            enhanced,
            text,
            connection.peer,
            connection.tls,
            self._loop.time() - delivery.started_at,
            kind == ACCEPTED and delivery.dsn,
        )

    def _outcomes(
        self, connection: SmtpConnection, delivery: Delivery, verdicts: list[Verdict | None]
    ) -> list[Outcome]:
        """One for each recipient of the job; recipients with the same verdict share one object."""
        all_verdicts = dict(delivery.refused)
        positions = range(len(verdicts)) if delivery.positions is None else delivery.positions
        for position, verdict in zip(positions, verdicts, strict=True):
            assert verdict is not None
            all_verdicts[position] = verdict
        made: dict[Verdict, Outcome] = {}
        outcomes = []
        for position in range(len(delivery.job.recipients)):
            verdict = all_verdicts[position]
            outcome = made.get(verdict)
            if outcome is None:
                outcome = made[verdict] = self._outcome(connection, delivery, verdict)
            outcomes.append(outcome)
        return outcomes

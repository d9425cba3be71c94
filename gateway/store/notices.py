"""Who is told when a mailbox changes, in this worker and in the others.

    Owns      Notices
    Flow      commit → publish() → listeners here, at once; send() → the other workers → receive() → theirs
    Limits    a listener is a callback; whoever subscribes bounds their number
    Errors    a listener's error is logged and the next one is told all the same
    Blocking  nothing; everything on the worker's loop

A notice says that something is new, not what: whoever cares asks Account.changes().  Where notices got lost between
workers, LOST follows: every listener is told Notice(account, 0, NEVER), that anything may have changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import msgspec

from gateway.store.model import NEVER, Notice

logger = logging.getLogger(__name__)

Listener = Callable[[Notice], None]

DATAGRAM_OCTETS_MAX = 60_000  # what one message to another worker may have
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Notice])

LOST = _encoder.encode([Notice("", 0, NEVER)])


class Notices:
    """The change notices of one worker."""

    def __init__(
        self,
        send: Callable[[bytes], None] | None = None,
        poll: Callable[[], None] | None = None,
    ) -> None:
        """send: carries octets to every other worker, whose receive() gets them; None: there is none.

        poll: calls receive() with what others have sent so far.
        """
        self.send = send
        self.poll = poll or _nothing
        self._listeners: dict[str, dict[object, Listener]] = {}

    def subscribe(self, account: str, listener: Listener) -> Callable[[], None]:
        """listener hears of every change in the account from now on; call what is returned to end that."""
        key = object()
        self._listeners.setdefault(account, {})[key] = listener

        def unsubscribe() -> None:
            listeners = self._listeners.get(account)
            if listeners is not None and key in listeners:
                del listeners[key]
                if not listeners:
                    del self._listeners[account]

        return unsubscribe

    def publish(self, notices: Sequence[Notice]) -> None:
        """These changes are durable: tell everybody."""
        for notice in notices:
            self._tell(notice)
        if self.send is not None:
            for payload in encode_notices(notices):
                self.send(payload)

    def receive(self, payload: bytes) -> None:
        """What another worker (or a command-line tool) published."""
        try:
            notices = _decoder.decode(payload)
        except msgspec.MsgspecError:
            logger.warning("a change notice that cannot be read was dropped")
            return
        for notice in notices:
            if notice.account:
                self._tell(notice)
            else:
                for account in list(self._listeners):
                    self._tell(Notice(account, 0, NEVER))

    def _tell(self, notice: Notice) -> None:
        listeners = self._listeners.get(notice.account)
        if listeners is None:
            return
        for listener in list(listeners.values()):
            try:
                listener(notice)
            except Exception:
                logger.exception("a listener failed on a change notice")


def _nothing() -> None:
    pass


def encode_notices(notices: Sequence[Notice]) -> list[bytes]:
    """Datagrams for the other workers; the last notice of each mailbox stands for those before it."""
    latest = {(notice.account, notice.mailbox): notice for notice in notices}
    payloads: list[bytes] = []
    batch: list[Notice] = []
    octets = 0
    for notice in latest.values():
        size = 40 + len(notice.account.encode("utf-8", "surrogateescape"))
        if batch and octets + size > DATAGRAM_OCTETS_MAX:
            payloads.append(_encoder.encode(batch))
            batch, octets = [], 0
        batch.append(notice)
        octets += size
    if batch:
        payloads.append(_encoder.encode(batch))
    return payloads

"""FETCH and UID FETCH: from the records of a view to responses, a window at a time.

Owns      FETCH, UID FETCH; tell_new() for NOTIFY
Flow      set → view.numbered() → windows → (read ahead in the store's thread ∥ written by the loop) → \\Seen in batches
Limits    WINDOW_OCTETS read and as many being sent; a message above LARGE_OCTETS goes out in slices (large.py)
Errors    RFC 2180 §4.1.2: what is there is told, then NO [EXPUNGEISSUED]
Blocking  never: the loop waits for the client after each window
Standards RFC 9051 §6.4.5, RFC 7162 §3.1.4 (CHANGEDSINCE), §3.2.6 (VANISHED), RFC 9394 §3.3 (PARTIAL), RFC 9586,
          RFC 9738
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway._native import (
    RECORD_OCTETS,
    find_records,
    newer_records,
    record_column,
    resolve_set,
    sum_records,
)
from gateway.protocol.imap.fetch import FetchRequest, Item, fetch_request
from gateway.server.imap.body import Answer, Context, Plan
from gateway.server.imap.large import send_large
from gateway.server.imap.message_limit import bounded_windows, refuse_more
from gateway.server.imap.state import PENDING, SELECTED, Bad, Capability, Handler, No, Outcome
from gateway.server.imap.vanished import vanished_since
from gateway.store.errors import NotNow, StoreError
from gateway.store.model import NEVER, SEEN, UID_MAX, ranges_of

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession
    from gateway.server.imap.state import Selected

WINDOW_OCTETS = 1 << 20
LARGE_OCTETS = 2 << 20  # a message above it is not held in memory
SYNC_MESSAGES = 4096  # so many are answered from the records at once, without a task
SMALL_MESSAGES = 64  # so many are read and answered in one step
QUICK_OCTETS = 65_536  # of messages, that are read without a thread
KNOWN_OCTETS = 1024  # of a request that is kept, lest the next is read again
SEEN_MESSAGES = 1024  # that become \\Seen share a transaction

# Packed sequence numbers (u32) and the records that belong to them.
Window = tuple[bytes, bytes]

_UID = Item(b"UID")


class _Known(NamedTuple):
    """A request that was read, and what it needs."""

    asked: tuple[bytes, bool, tuple[str, ...]]  # its text behind the set, whether by UID, keywords of the mailbox
    request: FetchRequest
    plan: Plan


def cmd_fetch(session: ImapSession, command: ImapCommand) -> Outcome | Coroutine[Any, Any, Outcome]:
    uid = command.name == b"UID FETCH"
    command.space()
    pairs = command.sequence_set()
    command.space()
    selected = session.selected
    assert selected is not None
    asked = (command.rest(), uid, selected.mailbox.keywords)
    known = selected.last_fetch
    if known is not None and known.asked == asked:  # clients ask for the same of one message after another
        window = selected.view.one(pairs, uid)
        if window is not None:
            return _fetch_small(session, selected, known.request, known.plan, window)
        request, plan = known.request, known.plan
    else:
        request = fetch_request(command, uid=uid)
        plan = Plan(_items(session, request, uid), context_of(session, selected))
    if request.vanished and b"QRESYNC" not in session.enabled:
        raise Bad("VANISHED needs ENABLE QRESYNC")  # RFC 7162 §3.2.6
    if request.changed_since is not None or request.has(b"MODSEQ"):
        session.enable_condstore()
    ranges = selected.view.ranges(pairs, uid)
    if request.partial is not None:
        first, last = request.partial
        refuse_more(session, abs(last - first) + 1)  # RFC 9738 §3.1
    windows = _asked_for(selected, ranges, request)
    if passed_over := bounded_windows(session, windows):
        windows = list(_part(windows, passed_over + 1, UID_MAX))
    if not request.vanished:
        if request.is_plain and len(asked[0]) <= KNOWN_OCTETS:
            selected.last_fetch = _Known(asked, request, plan)
        if not plan.sources and sum(len(found) for found, _ in windows) <= 4 * SYNC_MESSAGES:
            for numbers, records in windows:
                session.send(plan.format.format(records, numbers))
            return None
        if len(windows) == 1 and len(windows[0][0]) <= 4 * SMALL_MESSAGES:
            return _fetch_small(session, selected, request, plan, windows[0])
    wanted = resolve_set(pairs, selected.mailbox.uidnext - 1) if pairs is not None else ranges
    return _fetch_many(session, selected, request, plan, windows, wanted)


def _items(session: ImapSession, request: FetchRequest, uid: bool) -> list[Item]:
    items = list(request.items)
    if (
        uid and b"UIDONLY" not in session.enabled and _UID not in items
    ):  # RFC 9051 §6.4.9, RFC 9586 §3.3
        items.insert(0, _UID)
    return items


def context_of(session: ImapSession, selected: Selected) -> Context:
    """What FETCH responses of this session have in common."""
    is_rev2 = b"IMAP4REV2" in session.enabled
    return Context(
        selected.mailbox.keywords,
        0 if is_rev2 else selected.view.recent_uid,  # RFC 9051 appendix E: \Recent is gone
        b"UIDONLY" in session.enabled,
        selected.place.account.name,
    )


def _asked_for(selected: Selected, ranges: bytes, request: FetchRequest) -> list[Window]:
    """The messages to be told of, a chunk of the index at a time."""
    windows = list(selected.view.numbered(ranges))
    since = request.changed_since
    if since is not None:
        windows = [found for window in windows if (found := newer_records(*window, since))[0]]
    if request.partial is not None:
        windows = list(_part(windows, *request.partial))
    return windows


def _part(windows: list[Window], first: int, last: int) -> Iterator[Window]:
    """Those at positions first to last, counted from the end when they are negative (RFC 9394 §3.3)."""
    total = sum(len(numbers) for numbers, _ in windows) // 4
    start, end = (first - 1, last) if first > 0 else (total + last, total + first + 1)
    start, end = max(0, start), min(total, end)
    before = 0
    for numbers, records in windows:
        count = len(numbers) // 4
        low, high = max(0, start - before), min(count, end - before)
        if low < high:
            yield numbers[4 * low : 4 * high], records[RECORD_OCTETS * low : RECORD_OCTETS * high]
        before += count


def _fetch_small(
    session: ImapSession, selected: Selected, request: FetchRequest, plan: Plan, window: Window
) -> Outcome | Coroutine[Any, Any, Outcome]:
    """A few messages: read and answered at once where nothing has to be waited for."""
    numbers, records = window
    if not plan.sources:
        session.send(plan.format.format(records, numbers))
        return None
    octets = sum_records(records)[3]
    if plan.reads_content and octets > WINDOW_OCTETS:
        return _fetch_many(session, selected, request, plan, [window], b"")
    account = selected.place.account
    keys = array("Q", record_column(records, "message"))
    previews = _known_previews(session, selected, plan, keys)
    names = plan.names if previews is None else plan.names_but_text
    reads_content = plan.reads_content and previews is None
    if octets <= QUICK_OCTETS or (len(keys) == 1 and not reads_content):
        try:
            columns = account.columns_now(keys, names) if names else []
        except NotNow:
            pass
        else:
            answer = plan.answer(numbers, records, columns, previews)
            session.send(answer.octets)
            _keep_previews(session, selected, keys, answer)
            if plan.reads_content:
                session.count_retrieved(len(keys), octets)
            if plan.sets_seen and find_records(records, 0, SEEN):
                return _set_seen(session, selected, records, answer.error)
            if answer.error is not None:
                raise answer.error
            return None
    if plan.sets_seen:
        return _fetch_many(session, selected, request, plan, [window], b"")
    if plan.reads_content:
        session.count_retrieved(len(keys), octets)
    _read_then_answer(session, selected, plan, window, keys)
    return PENDING


def _known_previews(
    session: ImapSession, selected: Selected, plan: Plan, keys: Sequence[int]
) -> list[bytes] | None:
    """Those of the messages, where PREVIEW is all that their text is needed for."""
    if not plan.previews:
        return None
    return session.service.previews.find((selected.place.account.name, selected.uidvalidity), keys)


def _keep_previews(session: ImapSession, selected: Selected, keys: array[int], answer: Answer) -> None:
    """The next that asks gets them from here."""
    if answer.previews is not None:
        where = selected.place.account.name, selected.uidvalidity
        session.service.previews.keep(where, keys, answer.previews)


def _read_then_answer(
    session: ImapSession, selected: Selected, plan: Plan, window: Window, keys: array[int]
) -> None:
    """The same by a thread; no coroutine is needed."""
    numbers, records = window
    answer = session.answer_later()

    def done(found: Answer, error: StoreError | None) -> None:
        if error is not None:
            answer(error)
            return
        session.send(found.octets)
        _keep_previews(session, selected, keys, found)
        answer(found.error)

    selected.place.account.columns_then(keys, plan.names, lambda columns: plan.answer(numbers, records, columns), done)


async def _set_seen(session: ImapSession, selected: Selected, records: bytes, error: No | None) -> Outcome:
    seen = _Seen(session, selected)
    await seen.add(records)
    await seen.finish()
    if error is not None:
        raise error
    return None


def _fetch_many(
    session: ImapSession,
    selected: Selected,
    request: FetchRequest,
    plan: Plan,
    windows: list[Window],
    wanted: bytes,
) -> Coroutine[Any, Any, Outcome]:
    selected.last_fetch = None  # a thread may still work by this plan when the next command comes
    if plan.reads_content:
        for _, records in windows:
            count, _, _, octets, _, _ = sum_records(records)
            session.count_retrieved(count, octets)
    return _fetch(session, selected, request, plan, windows, wanted)


def tell_new(session: ImapSession, items: Sequence[Item], uid: int) -> None:
    """FETCH responses for the messages from that UID on, which nobody asked for just now (RFC 5465 §5.2)."""
    selected = session.selected
    assert selected is not None
    request = FetchRequest(tuple(items))
    ranges = ranges_of((uid,))[:4] + ranges_of((UID_MAX,))[4:]
    windows = list(selected.view.numbered(ranges))
    plan = Plan(_items(session, request, True), context_of(session, selected))
    if windows:
        session.later(_tell_new(session, selected, request, plan, windows, ranges))


async def _tell_new(
    session: ImapSession,
    selected: Selected,
    request: FetchRequest,
    plan: Plan,
    windows: list[Window],
    ranges: bytes,
) -> None:
    with suppress(No, StoreError):  # a message that is gone already
        await _fetch(session, selected, request, plan, windows, ranges)


async def _fetch(
    session: ImapSession,
    selected: Selected,
    request: FetchRequest,
    plan: Plan,
    windows: list[Window],
    wanted: bytes,
) -> Outcome:
    if request.vanished:
        assert request.changed_since is not None
        await vanished_since(session, request.changed_since, wanted)
    seen = _Seen(session, selected) if plan.sets_seen else None
    error: No | None = None
    if not plan.sources:
        for numbers, records in windows:
            session.send(plan.format.format(records, numbers))
            await session.drained()
        return None
    account = selected.place.account
    names = plan.names

    def read(window: Window) -> asyncio.Future[Answer] | None:
        """Begin; None: the message is too large for that."""
        numbers, records = window
        keys = array("Q", record_column(records, "message"))
        previews = _known_previews(session, selected, plan, keys)
        if previews is not None:
            return account.columns(
                keys, plan.names_but_text, lambda columns: plan.answer(numbers, records, columns, previews)
            )
        if len(keys) == 1 and "content" in names and _size(records) > LARGE_OCTETS:
            return None
        return account.columns(keys, names, lambda columns: plan.answer(numbers, records, columns))

    todo = _bounded(windows, names)
    window = next(todo, None)
    answer = read(window) if window is not None else None
    following: asyncio.Future[Answer] | None = None
    try:
        while window is not None:
            after = next(todo, None)
            following = read(after) if after is not None else None
            if answer is not None:
                found = await answer
                session.send(found.octets)
                _keep_previews(session, selected, array("Q", record_column(window[1], "message")), found)
                failed = found.error
            else:
                failed = await send_large(session, plan, account, window)
            error = error or failed
            await session.drained()
            if seen is not None:
                await seen.add(window[1])
            window, answer = after, following
        if seen is not None:
            await seen.finish()
    finally:
        for future in (answer, following):
            if future is not None:
                future.cancel()
    if error is not None:
        raise error
    return None


def _size(record: bytes) -> int:
    return int.from_bytes(record[4:8], "little")


def _bounded(windows: list[Window], names: list[str]) -> Iterator[Window]:
    """Cut where a window would be read to more than WINDOW_OCTETS."""
    if "content" not in names:
        yield from windows
        return
    for numbers, records in windows:
        start = octets = 0
        for at, size in enumerate(array("I", record_column(records, "size"))):
            octets += size
            if octets > WINDOW_OCTETS and at > start:
                yield (
                    numbers[4 * start : 4 * at],
                    records[RECORD_OCTETS * start : RECORD_OCTETS * at],
                )
                start, octets = at, size
        yield numbers[4 * start :], records[RECORD_OCTETS * start :]


class _Seen:
    """Messages whose text was told become \\Seen, many in one transaction (RFC 9051 §6.4.5)."""

    def __init__(self, session: ImapSession, selected: Selected) -> None:
        self._session = session
        self._selected = selected
        self._on = not selected.read_only and "s" in selected.place.rights  # RFC 4314 §4
        self._uids = array("I")

    async def add(self, records: bytes) -> None:
        if self._on:
            self._uids.frombytes(find_records(records, 0, SEEN))
            if len(self._uids) >= SEEN_MESSAGES:
                await self.finish()

    async def finish(self) -> None:
        """What was added is stored; the session tells of it like of any change."""
        if self._uids:
            selected = self._selected
            uids, self._uids = self._uids, array("I")
            watch, ranges = selected.view.watch, ranges_of(uids)
            stored = watch.store(ranges, 0, SEEN, NEVER)
            if stored is None:
                stored = await selected.place.account.store(watch.mailbox.id, ranges, add=("\\Seen",))
                if stored.modseq:
                    watch.apply(stored.changed, b"", stored.modseq)
            if stored.modseq:
                self._session.first_read(stored.changed)


_ALWAYS = (
    b"BINARY", b"PARTIAL", b"PREVIEW", b"SAVEDATE",
)  # fmt: skip

COMMANDS = {
    b"FETCH": Handler(cmd_fetch, SELECTED, expunges=False, by_sequence=True),
    b"UID FETCH": Handler(cmd_fetch, SELECTED),
}
CAPABILITIES = [Capability(name) for name in _ALWAYS]

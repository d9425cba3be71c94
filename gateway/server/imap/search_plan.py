"""How a search is carried out: the keys as a plan, the plan over the records of a mailbox, as masks.

    Owns      Scope, Plan, Found; scope_of(), plan_search(), find()
    Flow      Key → Node, what costs least first → for some thousand records at a time: mask → narrower mask → Found
    Limits    BATCH_RECORDS at a time; the loop gets its turn every TURN_S
    Errors    StoreError; a message that was expunged meanwhile, or cannot be read, has no text
    Blocking  never: texts are looked at in the store's threads, in slices
    Standards RFC 9051 §6.4.4; RFC 5032; RFC 6203 (FUZZY); RFC 8474 §5.3; RFC 8514

Records are never unpacked: keys about flags, sizes, dates, MODSEQ and sets are one native pass over a chunk.
"""

from __future__ import annotations

import asyncio
import re
import struct
from array import array
from calendar import timegm
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import date
from email.utils import parsedate
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import msgspec

from gateway._native import (
    PICK_MESSAGE,
    RECORD_OCTETS,
    crc32c,
    mask_and,
    mask_or,
    mask_ranges,
    mask_without,
    match_records,
    pick,
    scatter_mask,
    thread_id,
    unpack_texts,
)
from gateway.mail.imap_facts import ENVELOPE, section
from gateway.mail.search_text import folded
from gateway.protocol.imap.search import (
    DAY_S,
    FOREVER,
    Age,
    And,
    Between,
    Flag,
    Key,
    Not,
    Numbers,
    ObjectId,
    Or,
    Recent,
    Sent,
    Text,
)
from gateway.store.errors import StoreError
from gateway.store.model import UID_MAX, Mailbox
from gateway.store.store import Account
from gateway.store.texts import FIELDS, REFERENCES

if TYPE_CHECKING:
    from gateway.server.imap.state import Selected

BATCH_RECORDS = 8192
TURN_S = 0.001
T = TypeVar("T")


class Scope(NamedTuple):
    """The messages that are searched."""

    account: Account
    mailbox: Mailbox
    chunks: Sequence[bytes]  # packed records
    ranges: Callable[[bytes | None, bool], bytes]  # a set as sent, by UID? → ranges of UIDs; may raise Bad
    recent_uid: int = UID_MAX + 1


def scope_of(selected: Selected) -> Scope:
    """The selected mailbox as this session knows it."""
    view = selected.view

    def ranges(pairs: bytes | None, uid: bool) -> bytes:
        if pairs is not None and not uid:
            return view.existing(pairs)  # a number that no message has matches none
        return view.ranges(pairs, uid)

    return Scope(
        selected.place.account, view.mailbox, view.chunks, ranges, view.recent_uid
    )


class Batch(NamedTuple):
    """Some records, and the number of the first."""

    records: bytes
    first: int


class Run:
    """What one search learns on its way."""

    def __init__(self, account: Account, progress: Callable[[int], None]) -> None:
        self.account = account
        self.progress = progress  # told how many messages were looked at
        self.scores: dict[int, list[int]] = {}  # message key → of each fuzzy key, 1 to 100


class Node(Protocol):
    """Finds a mask within a mask."""

    cost: int  # what is tried first: 0 is next to nothing, 9 reads bodies

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes: ...


class Plan(NamedTuple):
    node: Node
    indexed: bool  # the records are all that is needed: find() never waits
    modseq: bool  # a key asks for MODSEQ


class Found(msgspec.Struct, frozen=True):
    """What matched."""

    parts: list[tuple[Batch, bytes]]  # with the mask of each
    count: int
    scores: dict[int, list[int]]

    def pick(self, what: int) -> bytes:
        """One value of each message, in order: see gateway._native.pick()."""
        return b"".join(pick(batch.records, mask, what, batch.first) for batch, mask in self.parts)

    def score(self, message: int) -> int:
        """RELEVANCY of a message, by its key: 1 to 100 (RFC 6203 §4)."""
        scores = self.scores.get(message)
        return sum(scores) // len(scores) if scores else 100


# -- planning ------------------------------------------------------------------------------------------------------

_CRITERIA = struct.Struct("<QQQQQQqqqqqqqq")  # as match_records() has them
_FIELDS = ("modseq", "message", "size", "internal_date", "save_date", "sent_date")
_UNSIGNED = 2  # of them
_LARGEST = 2**64 - 1


class Criteria:
    """What one pass over the records can tell."""

    cost = 0

    def __init__(self) -> None:
        self.must = self.must_not = 0
        self.bounds = [(0, _LARGEST)] * _UNSIGNED + [(-FOREVER, FOREVER)] * (len(_FIELDS) - _UNSIGNED)
        self._packed = b""

    def narrow(self, field: str, low: int, high: int) -> None:
        at = _FIELDS.index(field)
        old_low, old_high = self.bounds[at]
        smallest, largest = (0, _LARGEST) if at < _UNSIGNED else (-FOREVER, FOREVER)
        self.bounds[at] = (
            min(max(low, old_low, smallest), largest),
            max(min(high, old_high, largest), smallest),
        )

    def mask(self, records: bytes) -> bytes:
        if not self._packed:
            bounds = [one for pair in self.bounds for one in pair]
            self._packed = _CRITERIA.pack(self.must, self.must_not, *bounds)
        return match_records(records, self._packed)

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes:
        return mask_and(mask, self.mask(batch.records))


class Everything:
    cost = 0

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes:
        return mask


class Nothing:
    cost = 0

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes:
        return bytes(len(mask))


class InRanges:
    """UIDs."""

    cost = 1

    def __init__(self, ranges: bytes) -> None:
        self._ranges = ranges

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes:
        return mask_and(mask, mask_ranges(batch.records, self._ranges))


class AllOf:
    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = sorted(nodes, key=lambda node: node.cost)
        self.cost = self._nodes[-1].cost

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes:
        for node in self._nodes:
            if 1 not in mask:
                break
            mask = await node.find(run, batch, mask)
        return mask


class AnyOf:
    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = sorted(nodes, key=lambda node: node.cost)
        self.cost = self._nodes[-1].cost

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes:
        found = bytes(len(mask))
        for node in self._nodes:
            hits = await node.find(run, batch, mask)
            found = mask_or(found, hits)
            mask = mask_without(mask, hits)
            if 1 not in mask:
                break
        return found


class NoneOf:
    def __init__(self, node: Node) -> None:
        self._node = node
        self.cost = node.cost

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes:
        return mask_without(mask, await self._node.find(run, batch, mask))


class HasText:
    """Asks the store about those that are left."""

    def __init__(self, where: str, text: str) -> None:
        self.where = where
        self.text = text
        self.cost = 4 if where in FIELDS else 9 if where in ("text", "body") else 6

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes:
        keys = array("Q", pick(batch.records, mask, PICK_MESSAGE))
        if not keys:
            return mask
        share = len(mask) / len(keys)

        def progress(done: int) -> None:
            run.progress(batch.first - 1 + int(done * share))

        return scatter_mask(mask, await run.account.search(keys, self.where, self.text, progress))


class Resembles:
    """FUZZY: half of the words at least, wherever they are; the score is their share, 100 for the very text."""

    def __init__(self, text: Text) -> None:
        self._exact = HasText(text.where, text.text)
        words = list(dict.fromkeys(re.findall(r"\w+", folded(text.text))))
        self._words = [HasText(text.where, word) for word in words] if len(words) > 1 else []
        self.cost = self._exact.cost

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes:
        exact = await self._exact.find(run, batch, mask)
        self._score(run, batch, exact, 100)
        if not self._words:
            return exact
        rest = mask_without(mask, exact)
        counts = bytearray(len(mask))
        for word in self._words:
            for at in _places(await word.find(run, batch, rest)):
                counts[at] += 1
        found = exact
        for count in range((len(self._words) + 1) // 2, len(self._words) + 1):
            having = bytes(count == one for one in counts)
            self._score(run, batch, having, 90 * count // len(self._words))
            found = mask_or(found, having)
        return found

    @staticmethod
    def _score(run: Run, batch: Batch, mask: bytes, score: int) -> None:
        for key in array("Q", pick(batch.records, mask, PICK_MESSAGE)):
            run.scores.setdefault(key, []).append(score)


class SentOn:
    """The day is that of the Date field's own zone: near its ends, the field itself is looked at."""

    cost = 3

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high
        self._sure, self._perhaps, self._unknown = Criteria(), Criteria(), Criteria()
        self._sure.narrow("sent_date", max(low + DAY_S, 1), high - DAY_S)
        self._perhaps.narrow("sent_date", max(low - DAY_S, 1), high + DAY_S)
        self._unknown.narrow("sent_date", 0, 0)

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes:
        sure = mask_and(mask, self._sure.mask(batch.records))
        perhaps = mask_or(self._perhaps.mask(batch.records), self._unknown.mask(batch.records))
        perhaps = mask_without(mask_and(mask, perhaps), sure)
        keys = array("Q", pick(batch.records, perhaps, PICK_MESSAGE))
        if not keys:
            return sure
        days = [_day(one) for one in await run.account.facts(keys)]
        hits = bytes(day is not None and self._low <= day <= self._high for day in days)
        return mask_or(sure, scatter_mask(perhaps, hits))


_DATE = re.compile(rb'\("([^"\\]+)"')
# As nearly all are written (RFC 5322 §3.3); the others cost ten times that.
_USUAL = re.compile(rb"(?:[A-Z][a-z]{2}, ?)?([0-9]{1,2}) ([A-Z][a-z]{2}) ([0-9]{4}) [0-9]")
_MONTHS = {
    month: number
    for number, month in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)
}
_EPOCH = date(1970, 1, 1).toordinal()


def _day(facts: bytes | StoreError) -> int | None:
    """Midnight of the day in the Date field."""
    found = None if isinstance(facts, StoreError) else _DATE.match(section(facts, ENVELOPE))
    if found is None:
        return None
    usual = _USUAL.match(found[1])
    try:
        if usual is not None and usual[2] in _MONTHS:
            day = date(int(usual[3]), _MONTHS[usual[2]], int(usual[1]))
            return (day.toordinal() - _EPOCH) * DAY_S
        fields = parsedate(found[1].decode("ascii", "replace"))
        return None if fields is None else timegm((*fields[:3], 0, 0, 0))
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


class InThread:
    """RFC 8474 §5.2."""

    cost = 4

    def __init__(self, value: str) -> None:
        self._value = value.encode()

    async def find(self, run: Run, batch: Batch, mask: bytes) -> bytes:
        keys = array("Q", pick(batch.records, mask, PICK_MESSAGE))
        if not keys:
            return mask
        texts = unpack_texts(await run.account.texts(REFERENCES, keys))
        ids = [thread_id(text, key) for text, key in zip(texts, keys, strict=True)]
        return scatter_mask(mask, bytes(one == self._value for one in ids))


def _places(mask: bytes) -> Iterator[int]:
    at = mask.find(1)
    while at >= 0:
        yield at
        at = mask.find(1, at + 1)


def email_id_prefix(account: str) -> str:
    """EMAILID without the message's key, which follows in hexadecimal digits."""
    return f"M{crc32c(account.encode()):08x}-"


class _Planner:
    """Makes the plan of one search in one mailbox."""

    def __init__(self, scope: Scope, now: int) -> None:
        self._scope = scope
        self._now = now
        self.indexed = True
        self.modseq = False

    def node(self, key: Key) -> Node:
        if isinstance(key, Or):
            return AnyOf([self.node(one) for one in key.keys])
        return self._all([key])

    def _all(self, keys: Sequence[Key]) -> Node:
        """All of these, with one pass for what the records can tell."""
        criteria, nodes = Criteria(), list[Node]()
        for key in _flat(keys):
            if not self._narrow(criteria, key):
                nodes.append(self._other(key))
        if not nodes or criteria.bounds != Criteria().bounds or criteria.must | criteria.must_not:
            nodes.append(criteria)
        return nodes[0] if len(nodes) == 1 else AllOf(nodes)

    def _narrow(self, criteria: Criteria, key: Key) -> bool:
        """False when the criteria cannot tell."""
        if isinstance(key, Between):
            self.modseq |= key.field == "modseq"
            criteria.narrow(key.field, key.low, key.high)
        elif isinstance(key, Age):
            then = self._now - key.seconds
            low, high = (-FOREVER, then) if key.older else (then, FOREVER)
            criteria.narrow("internal_date", low, high)
        elif isinstance(key, Flag) and (bits := self._scope.mailbox.bits([key.name])):
            criteria.must |= bits
        elif isinstance(key, Not) and isinstance(key.key, Flag):
            criteria.must_not |= self._scope.mailbox.bits([key.key.name]) or 0
        elif isinstance(key, ObjectId) and not key.thread:
            message = self._message(key.value)
            criteria.narrow("message", message, message if message else -1)
        else:
            return False
        return True

    def _message(self, email_id: str) -> int:
        """The key of an EMAILID; 0: nobody has it."""
        prefix = email_id_prefix(self._scope.account.name)
        digits = email_id.removeprefix(prefix)
        if digits == email_id or not re.fullmatch("[0-9a-f]{1,16}", digits):
            return 0
        return int(digits, 16)

    def _other(self, key: Key) -> Node:
        if isinstance(key, Or):
            return self.node(key)
        if isinstance(key, Not):
            return NoneOf(self.node(key.key))
        if isinstance(key, Numbers):
            return InRanges(self._scope.ranges(key.pairs, key.uid))
        if isinstance(key, Recent):
            recent = self._scope.recent_uid
            return InRanges(struct.pack("<II", recent, UID_MAX)) if recent <= UID_MAX else Nothing()
        if isinstance(key, Flag):
            return Nothing()  # a keyword that no message of the mailbox ever had
        self.indexed = False
        if isinstance(key, Sent):
            return SentOn(key.low, key.high)
        if isinstance(key, ObjectId):
            return InThread(key.value)
        assert isinstance(key, Text)
        return Resembles(key) if key.fuzzy else HasText(key.where, key.text)


def _flat(keys: Sequence[Key]) -> Iterator[Key]:
    for key in keys:
        if isinstance(key, And):
            yield from _flat(key.keys)
        elif isinstance(key, Not) and isinstance(key.key, Not):
            yield from _flat([key.key.key])
        else:
            yield key


def plan_search(key: Key, scope: Scope, now: int) -> Plan:
    """now: seconds since 1970.  Raises Bad for sequence numbers that do not exist."""
    planner = _Planner(scope, now)
    node = planner.node(key)
    return Plan(node, planner.indexed, planner.modseq)


# -- carrying it out -------------------------------------------------------------------------------------------------


def _batches(chunks: Sequence[bytes]) -> Iterator[Batch]:
    first = 1
    some: list[bytes] = []
    octets = 0
    for at, chunk in enumerate(chunks):
        some.append(chunk)
        octets += len(chunk)
        if octets >= BATCH_RECORDS * RECORD_OCTETS or at == len(chunks) - 1:
            records = some[0] if len(some) == 1 else b"".join(some)
            yield Batch(records, first)
            first += octets // RECORD_OCTETS
            some, octets = [], 0


def _unheard(_: int) -> None:
    return


async def find(
    plan: Plan, scope: Scope, progress: Callable[[int], None] = _unheard, turn_s: float = TURN_S
) -> Found:
    """Every message of the scope that the plan is true for; others have their turn after turn_s.  Raises StoreError."""
    run = Run(scope.account, progress)
    parts = []
    count = 0
    turn = monotonic() + turn_s
    for batch in _batches(scope.chunks):
        if monotonic() > turn:
            await asyncio.sleep(0)
            turn = monotonic() + turn_s
        mask = b"\1" * (len(batch.records) // RECORD_OCTETS)
        mask = await plan.node.find(run, batch, mask)
        progress(batch.first - 1 + len(mask))
        hits = mask.count(1)
        if hits:
            parts.append((batch, mask))
            count += hits
    return Found(parts, count, run.scores)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("it waits")

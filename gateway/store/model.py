"""The values that go in and out of the store.

Owns      Delivery, Delivered, Quota, Usage, Mailbox, Snapshot, Changes, Content, Notice; flags and their bits
Limits    KEYWORDS_MAX keywords a mailbox; a message is smaller than 4 GiB (RFC 9051 number)
Standards RFC 9051 §2.3, RFC 6154 (special use), RFC 7162, RFC 8474, RFC 8514
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from gateway._native import crc32c

# Bits of a record's flags.  Keywords follow from bit KEYWORD_BIT on, in the order the mailbox learned them.
SEEN, ANSWERED, FLAGGED, DELETED, DRAFT = 1, 2, 4, 8, 16
SYSTEM_FLAGS = {
    "\\Seen": SEEN,
    "\\Answered": ANSWERED,
    "\\Flagged": FLAGGED,
    "\\Deleted": DELETED,
    "\\Draft": DRAFT,
}
SYSTEM_MASK = 0xFF
KEYWORD_BIT = 8
KEYWORDS_MAX = 64 - KEYWORD_BIT

UID_MAX = 2**32 - 1
ALL_UIDS = struct.pack("<II", 1, UID_MAX)
NEVER = 2**64 - 1  # an `unchanged_since` that refuses nothing

# One message in the index, see _native/store_index.pyx.
RECORD = struct.Struct("<IIQQQqII")

# A change of flags as a mailbox logs it: first UID, last UID, clear, set, MODSEQ; flags become (flags & ~clear) | set.
FLAG_CHANGE = struct.Struct("<IIQQQ")


class Record(NamedTuple):
    """One message of a mailbox, unpacked."""

    uid: int
    size: int  # octets of the whole message
    flags: int  # system bits and keyword bits
    modseq: int
    message: int  # its key in the account; the same for every copy
    internal_date: int  # seconds since 1970 (UTC)
    save_date: int  # the same: when it came into this mailbox (RFC 8514)
    sent_date: int  # the same: of the Date field; 0 when there is none to be read (RFC 5256 §2.2)


def records_of(octets: bytes) -> list[Record]:
    """The records of a chunk; for large mailboxes use the kernels on the octets instead."""
    return [Record(*fields) for fields in RECORD.iter_unpack(octets)]


def ranges_of(uids: Iterable[int]) -> bytes:
    """UIDs as the ranges that the store takes: packed (first, last) pairs, ascending and apart."""
    pairs = array("I")
    for uid in sorted(set(uids)):
        if pairs and pairs[-1] == uid - 1:
            pairs[-1] = uid
        else:
            pairs.extend((uid, uid))
    return pairs.tobytes()


Slices = Sequence[bytes | memoryview]


class Quota(msgspec.Struct, frozen=True):
    """What an account may keep; 0: no limit."""

    octets: int = 0
    messages: int = 0


class Usage(msgspec.Struct, frozen=True):
    """What an account keeps: every mailbox's copy of a message counts (RFC 9208 §3.1.2)."""

    octets: int
    messages: int


class Delivery(msgspec.Struct):
    """One message for one mailbox.

    again: it may have been delivered before (by its origin): then it is not added a second time.
    """

    account: str
    content: Slices | Callable[[], Slices]  # of the whole message; a function is called in a thread
    size: int = 0  # octets of a content that is a function
    prefix: bytes = b""  # trace fields in front of it
    mailbox: str = "INBOX"
    fallback: str = ""  # where it goes when there is no such mailbox
    flags: Sequence[str] = ()  # system flags and keywords
    internal_date: int | None = None  # seconds since 1970; None: now
    origin: str = ""  # queue id, SP, index of the recipient; empty: it did not come by mail
    received_at: int = 0  # again: not delivered before then (seconds since 1970)
    again: bool = False
    urgent: bool = False  # somebody waits for it: it is not gathered with others to come
    quota: Quota = Quota()
    create: bool = False  # make the mailbox when it does not exist

    @property
    def octets(self) -> int:
        return len(self.prefix) + (
            self.size if callable(self.content) else sum(map(len, self.content))
        )


class Delivered(msgspec.Struct, frozen=True):
    """Where a message is now, durably."""

    mailbox: str
    mailbox_id: int
    uid: int
    uidvalidity: int
    modseq: int
    message: int  # its key


def object_id(account: str, uidvalidity: int, mailbox: int) -> str:
    """MAILBOXID (RFC 8474 §4): who shares mailboxes sees those of several accounts."""
    return f"F{crc32c(account.encode()):08x}-{uidvalidity:x}-{mailbox:x}"


class Mailbox(msgspec.Struct, frozen=True):
    """A mailbox as LIST, STATUS and SELECT ask for it, at one moment."""

    id: int  # never used again in this account
    name: str
    uidvalidity: int
    uidnext: int
    highestmodseq: int
    messages: int
    unseen: int
    deleted: int
    octets: int
    recent: int  # messages that no session was told of as \\Recent (RFC 3501 §2.3.2)
    special_use: tuple[str, ...]
    subscribed: bool
    keywords: tuple[str, ...]  # the n-th has bit KEYWORD_BIT + n
    selectable: bool  # False: there is only something below it, or a subscription to it

    def object_id(self, account: str) -> str:
        """account: whose mailbox it is."""
        return object_id(account, self.uidvalidity, self.id)

    def bits(self, flags: Iterable[str]) -> int | None:
        """The bits of these flags; None when a keyword is unknown here."""
        bits = 0
        known: list[str] | None = None
        for flag in flags:
            lower = flag.lower()
            bit = SYSTEM_FLAGS_LOWER.get(lower)
            if bit is None:
                if known is None:
                    known = [keyword.lower() for keyword in self.keywords]
                if lower not in known:
                    return None
                bit = 1 << (KEYWORD_BIT + known.index(lower))
            bits |= bit
        return bits

    def names(self, bits: int) -> list[str]:
        """The flags and keywords that these bits stand for."""
        found = [name for name, bit in SYSTEM_FLAGS.items() if bits & bit]
        rest = bits >> KEYWORD_BIT
        if rest:
            found += [word for index, word in enumerate(self.keywords) if rest >> index & 1]
        return found


SYSTEM_FLAGS_LOWER = {name.lower(): bit for name, bit in SYSTEM_FLAGS.items()}


class Snapshot(msgspec.Struct, frozen=True):
    """A mailbox and the packed records of its messages, both of one moment; chunks ascend by UID."""

    mailbox: Mailbox
    chunks: list[bytes]


class Changes(msgspec.Struct, frozen=True):
    """What happened in a mailbox after a MODSEQ (RFC 7162)."""

    mailbox: Mailbox  # as it is now
    changed: list[bytes]  # packed records of new and changed messages, ascending by UID
    expunged: bytes  # ranges of expunged UIDs; may name UIDs that the asker never saw
    complete: bool  # False: the history does not go back so far; what is missing must be found by comparing


class Expunged(msgspec.Struct, frozen=True):
    """What an EXPUNGE removed."""

    uids: bytes  # u32 each, ascending
    modseq: int  # of the removal; 0 when nothing was removed


class Stored(msgspec.Struct, frozen=True):
    """What a STORE did."""

    changed: bytes  # the records that changed, as they are now
    refused: bytes  # UIDs as u32: changed by others after unchanged_since
    modseq: int  # of the change; 0 when nothing changed


class Copied(msgspec.Struct, frozen=True):
    """What COPY or MOVE did: the n-th source UID became the n-th target UID (RFC 4315)."""

    uidvalidity: int
    source: bytes  # UIDs as u32
    target: bytes
    modseq: int = 0  # of the copies
    expunged_modseq: int = 0  # MOVE: of the removal from the source


class Content(msgspec.Struct, frozen=True):
    """A message: its header section with the empty line, and what follows."""

    header: bytes
    body: bytes


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """Something changed; what it was is asked for by changes()."""

    account: str
    mailbox: int  # its id; 0: the list of mailboxes
    modseq: int

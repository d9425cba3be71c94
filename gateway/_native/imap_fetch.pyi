"""FETCH responses in bulk: a page of the interface, see __init__.pyi."""

from collections.abc import Iterable, Sequence
from typing import Any, Final, final

from typing_extensions import Buffer

# What the value of an item is made of: the record,
FETCH_UID: Final[int]
FETCH_FLAGS: Final[int]
FETCH_MODSEQ: Final[int]
FETCH_SIZE: Final[int]
FETCH_DATE: Final[int]  # INTERNALDATE
FETCH_SAVE_DATE: Final[int]
FETCH_EMAIL_ID: Final[int]  # extra: its prefix
# a column: as it is, as a literal, as the literal of this column and the next, as literal8 where it has a NUL,
FETCH_OCTETS: Final[int]
FETCH_LITERAL: Final[int]
FETCH_PAIR: Final[int]
FETCH_BINARY: Final[int]
# a column of facts (mail/imap_facts.py): the section extra, BODYSTRUCTURE without extension data, the thread,
FETCH_SECTION: Final[int]
FETCH_BODY: Final[int]
FETCH_THREAD_ID: Final[int]
# a column of header sections; extra: HeaderFields.
FETCH_FIELDS: Final[int]

@final
class HeaderFields:
    """The fields of these names (any case), or with `others` all but those, of header sections (RFC 9051 §6.4.5)."""

    def __init__(self, names: Iterable[bytes], others: bool = False) -> None: ...
    def cut(self, header: Buffer) -> bytes:
        """Those fields as they are in the header section, and the empty line."""

@final
class FetchFormat:
    """How the FETCH responses of one command look.

    items: (label, kind, column, extra, start, count) of each.  kind is one of FETCH_*; column the index of its column,
    or of its first one; start and count the partial of a literal, -1 and 0 without.  keywords: of the mailbox, in the
    order of their bits.  recent_uid: UIDs from there on are \\Recent; 0: none are.  uid_only: UIDFETCH (RFC 9586).
    """

    def __init__(
        self,
        items: Sequence[tuple[bytes, int, int, Any, int, int]],
        keywords: Iterable[bytes] = (),
        recent_uid: int = 0,
        uid_only: bool = False,
    ) -> None: ...
    @property
    def columns(self) -> int:
        """How many columns format() needs."""
    def format(
        self,
        records: Buffer,
        numbers: int | Buffer,
        columns: Sequence[list[Any] | bytes] = (),
    ) -> bytes:
        """The responses for these packed records.

        numbers: the sequence number of the first, when they follow each other, or all of them as u32.  columns: lists
        of bytes (or buffers; None is NIL), in the order of the records; facts may be joined instead.
        """

def newer_records(numbers: Buffer, records: Buffer, modseq: int) -> tuple[bytes, bytes]:
    """Those of (sequence numbers as u32, records) that were changed after that MODSEQ."""

def body_of(structure: bytes) -> bytes:
    """BODYSTRUCTURE as BODY has it: without extension data.  Raises ValueError for what is none."""

def format_date(at: int) -> bytes:
    """Seconds since 1970 as a date-time in quotes, in UTC (RFC 9051 §9)."""

def thread_id(thread: Buffer, message: int) -> bytes:
    """THREADID of a message with that section THREAD of its facts and that key (RFC 8474 §5.2)."""

"""The whole boundary between Python and the compiled kernels (sources: /_native).

Offsets and sizes are octets.  What takes a Buffer borrows it for the call, unless it says otherwise.  No kernel logs,
waits or reads a clock; LogWriter alone has a thread and does I/O.
"""

from collections.abc import Callable, Container, Iterable
from typing import Any, Final, final

from typing_extensions import Buffer

from gateway._native.imap import (
    COMMAND,
    COMMAND_TOO_LONG,
    LITERAL,
    NEED_MORE,
    REFUSED,
    ImapCommand,
    ImapReader,
    ImapSyntaxError,
    decode_utf7,
    encode_utf7,
)
from gateway._native.imap_facts import FactsPacker as FactsPacker
from gateway._native.imap_fetch import (
    FETCH_BINARY,
    FETCH_BODY,
    FETCH_DATE,
    FETCH_EMAIL_ID,
    FETCH_FIELDS,
    FETCH_FLAGS,
    FETCH_LITERAL,
    FETCH_MODSEQ,
    FETCH_OCTETS,
    FETCH_PAIR,
    FETCH_SAVE_DATE,
    FETCH_SECTION,
    FETCH_SIZE,
    FETCH_THREAD_ID,
    FETCH_UID,
    FetchFormat,
    HeaderFields,
    body_of,
    format_date,
    newer_records,
    thread_id,
)
from gateway._native.imap_search import (
    PICK_ARRIVAL,
    PICK_DATE,
    PICK_MESSAGE,
    PICK_MODSEQ,
    PICK_NUMBER,
    PICK_SIZE,
    PICK_UID,
    mask_and,
    mask_or,
    mask_ranges,
    mask_without,
    match_records,
    pick,
    scatter_mask,
)
from gateway._native.imap_sets import (
    format_expunges,
    format_numbers,
    format_ranges,
    format_set,
    resolve_set,
    set_maximum,
)
from gateway._native.imap_thread import (
    thread_by_subject,
    thread_references,
)
from gateway._native.imap_view import (
    diff_records,
    numbers_to_uids,
    patch_records,
    ranges_of_uids,
    records_but,
    select_records,
    uids_to_numbers,
)
from gateway._native.text_search import (
    ABSENT,
    FOUND,
    UNDECIDED,
    find_in_ascii,
    find_in_header,
)
from gateway._native.texts import (
    count_blocks,
    find_texts,
    gather_texts,
    join_texts,
    mask_words,
    pack_texts,
    rank_texts,
    sort_order,
    take_numbers,
    unpack_texts,
)

__all__ = [
    "ABSENT",
    "AUTH",
    "BAD_PARAM",
    "BAD_PATH",
    "BARE_LF",
    "BDAT",
    "BLOCK_OCTETS",
    "COMMAND",
    "COMMAND_TOO_LONG",
    "DATA",
    "EHLO",
    "EIGHT_BIT",
    "ENCODING_7BIT",
    "ENCODING_8BIT",
    "ENCODING_BASE64",
    "ENCODING_BINARY",
    "ENCODING_OTHER",
    "ENCODING_QUOTED_PRINTABLE",
    "ERROR",
    "ETRN",
    "EXPN",
    "FETCH_BINARY",
    "FETCH_BODY",
    "FETCH_DATE",
    "FETCH_EMAIL_ID",
    "FETCH_FIELDS",
    "FETCH_FLAGS",
    "FETCH_LITERAL",
    "FETCH_MODSEQ",
    "FETCH_OCTETS",
    "FETCH_PAIR",
    "FETCH_SAVE_DATE",
    "FETCH_SECTION",
    "FETCH_SIZE",
    "FETCH_THREAD_ID",
    "FETCH_UID",
    "FOUND",
    "HELO",
    "HELP",
    "LHLO",
    "LINE_TOO_LONG",
    "LITERAL",
    "MAIL",
    "NEED_MORE",
    "NOOP",
    "NUL",
    "PATH_TOO_LONG",
    "PICK_ARRIVAL",
    "PICK_DATE",
    "PICK_MESSAGE",
    "PICK_MODSEQ",
    "PICK_NUMBER",
    "PICK_SIZE",
    "PICK_UID",
    "QUIT",
    "RCPT",
    "RECORD_HEADER_OCTETS",
    "RECORD_OCTETS",
    "REFUSED",
    "RSET",
    "STARTTLS",
    "SYNTAX",
    "UNDECIDED",
    "UNKNOWN",
    "VRFY",
    "XCLIENT",
    "Chunk",
    "DataDecoder",
    "DataEncoder",
    "FactsPacker",
    "FetchFormat",
    "HeaderFields",
    "ImapCommand",
    "ImapReader",
    "ImapSyntaxError",
    "LogWriter",
    "MimeScanner",
    "Part",
    "ReplyParser",
    "apply_flag_log",
    "body_of",
    "copy_records",
    "count_blocks",
    "crc32c",
    "decode_base64",
    "decode_utf7",
    "diff_records",
    "encode_base64",
    "encode_number",
    "encode_quoted_printable",
    "encode_utf7",
    "find_field",
    "find_headers",
    "find_in_ascii",
    "find_in_header",
    "find_line",
    "find_records",
    "find_texts",
    "first_fields",
    "format_date",
    "format_expunges",
    "format_numbers",
    "format_ranges",
    "format_set",
    "gather_texts",
    "imap_nstring",
    "imap_string",
    "iter_fields",
    "join_texts",
    "kernels",
    "live_counts",
    "mask_and",
    "mask_or",
    "mask_ranges",
    "mask_without",
    "mask_words",
    "match_records",
    "newer_records",
    "numbers_to_uids",
    "or_flags",
    "pack_texts",
    "parse_command",
    "parse_mailbox",
    "patch_records",
    "pick",
    "ranges_of_uids",
    "rank_texts",
    "record_column",
    "record_is_whole",
    "records_ascend",
    "records_but",
    "resolve_set",
    "scan_mime",
    "scan_records",
    "scatter_mask",
    "select_records",
    "set_maximum",
    "skip_line",
    "sort_order",
    "split_records",
    "store_flags",
    "stuff",
    "sum_records",
    "take_numbers",
    "thread_by_subject",
    "thread_id",
    "thread_references",
    "uids_to_numbers",
    "unpack_texts",
    "use_kernel",
    "xtext_decode",
    "xtext_encode",
]

# -- lines: line framing -------------------------------------------------------------------------

def find_line(data: bytes, pos: int, max_octets: int) -> int:
    """Offset just behind the LF that ends the line beginning at pos.

    -1 when the end is not in data yet, -2 when the line is longer than max_octets, its line end included.  Whether
    the LF is bare is for the caller to look at: it is the octet before it that tells.
    """

# -- dot: mail data: decoding and stuffing (RFC 5321 §4.5.2) -------------------------------------

def kernels() -> tuple[str, ...]:
    """Names of the instruction sets this machine can run; the last one is what is used."""

def use_kernel(name: str) -> None:
    """Scan with the named instruction set from now on; for tests and benches."""

def live_counts() -> tuple[int, int]:
    """(chunks, octets of memory they hold) at this moment, over all decoders and views."""

@final
class Chunk:
    """Octets of one message, read-only, by the buffer protocol.  They are freed when the last view of them goes."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class DataDecoder:
    """Decodes the mail data of one message at a time into chunks.

    max_octets: of content, 0 = no limit.  normalize: a bare LF becomes CRLF, a bare CR and a NUL become SP; without
    it they are kept as found.  Either way they are counted as found.  chunk_octets: the size of all chunks of a
    message but its last.

    A decoder that has received nothing holds no memory but itself.  One that has holds the first chunk until reset(),
    even when it was taken: header() and message_id read it.
    """

    def __init__(
        self, max_octets: int = 0, normalize: bool = True, chunk_octets: int = 262144
    ) -> None: ...
    @property
    def finished(self) -> bool: ...  # <CRLF>.<CRLF> was consumed, or finish_chunks() called
    @property
    def overflow(self) -> bool: ...  # more than max_octets: consumed and counted, no longer kept
    @property
    def pending_octets(self) -> int: ...  # kept and not taken
    @property
    def message_id(self) -> str:
        """The header's Message-ID, "" when there is none; whatever stands there when it is not a msg-id."""

    def reset(self, size_hint: int = 0) -> None:
        """Forget the message and be ready for the next one; size_hint: what SIZE promised, to spare allocations."""

    def feed(self, data: bytes, pos: int = 0) -> int:
        """Decode data from pos on; returns where the mail data ends: len(data) unless finished.

        The octets are consumed even when the content is too large: the peer must be heard out before it is told.
        """

    def feed_chunk(self, data: bytes, pos: int, size: int) -> int:
        """Take at most size octets of a BDAT chunk as they are; returns the new position (RFC 3030 §2).

        The facts are the same as for DATA: dot_lines counts the lines that will need stuffing when the content is
        sent by DATA later.
        """

    def finish_chunks(self) -> None:
        """BDAT LAST was received to its end: the content is complete."""

    def take(self, all: bool = False) -> Chunk | None:
        """The next full chunk, or None.  all: also the last one that is not full; call until None comes."""

    def facts(self) -> tuple[int, int, int, int, int, int, bool, bool, int, int, bool]:
        """The values of a mail.envelope.Facts, in order; final once finished."""

    def header(self) -> bytes:
        """A copy of the header section's octets, without the empty line, as far as they were kept in one piece."""

@final
class DataEncoder:
    """Makes of content, slice by slice, what DATA sends: stuffed dots (RFC 5321 §4.5.2), and the end of the data.

    repair: a bare LF or CR becomes CRLF, a NUL a space.  Without it the content must not have any; a "." behind a bare
    LF is stuffed all the same, lest a careless receiver finds the end of data in it.
    """

    def __init__(self, repair: bool = False) -> None: ...
    def encode(self, slices: Iterable[Buffer]) -> list[bytes | memoryview]:
        """The buffers to send for the next slices of the content; a slice without work is passed on as it is."""

    def finish(self) -> bytes:
        """What ends the data: CRLF when the content has none, and the final dot (RFC 5321 §4.1.1.4)."""

def stuff(
    slices: Iterable[Buffer], *, first: bool = True, repair: bool = False, end: bool = True
) -> list[bytes | memoryview]:
    """The buffers that DATA sends for the slices, for writelines(): DataEncoder at one stroke.

    first=False: the slices go on in the middle of a line.  end=False: the final dot is sent by somebody else.
    """

# -- smtp: commands, replies, mailboxes, xtext ---------------------------------------------------

# Verbs, dense: a session may dispatch by list index.
EHLO: Final[int]  # 1
HELO: Final[int]  # 2
LHLO: Final[int]  # 3
MAIL: Final[int]  # 4
RCPT: Final[int]  # 5
DATA: Final[int]  # 6
BDAT: Final[int]  # 7
RSET: Final[int]  # 8
NOOP: Final[int]  # 9
VRFY: Final[int]  # 10
EXPN: Final[int]  # 11
HELP: Final[int]  # 12
QUIT: Final[int]  # 13
STARTTLS: Final[int]  # 14
AUTH: Final[int]  # 15
XCLIENT: Final[int]  # 16
ETRN: Final[int]  # 17
UNKNOWN: Final[int]  # 18
ERROR: Final[int]  # 19

# Reasons that come with ERROR.
LINE_TOO_LONG: Final[int]  # 1
SYNTAX: Final[
    int
]  # 2: no FROM:/TO:, an argument where none belongs, a bad BDAT, a control character
BARE_LF: Final[int]  # 3
NUL: Final[int]  # 4
EIGHT_BIT: Final[int]  # 5: an octet above 127 where UTF-8 is not allowed, or no valid UTF-8
BAD_PATH: Final[int]  # 6
BAD_PARAM: Final[int]  # 7
PATH_TOO_LONG: Final[int]  # 8

def parse_command(
    data: bytes, pos: int, max_octets: int, utf8: bool = True, lenient: bool = False
) -> tuple[int, int, Any, Any] | None:
    """The command line that begins at pos: (next_pos, verb, a, b), or None while its CRLF has not come.

    MAIL, RCPT      a = mailbox ("" for <>; no source route; <Postmaster> alone only for RCPT), as written
                    b = ((KEYWORD, value or None), …); one shared () when there are none
    BDAT            a = size in octets, b = True for LAST
    DATA, RSET, QUIT, STARTTLS   a = "", b = None
    UNKNOWN         a = argument, b = the verb as written
    ERROR           a = reason, b = the verb it belongs to
    all others      a = argument without surrounding space, b = None

    max_octets counts the CRLF.  A longer line is ERROR LINE_TOO_LONG with next_pos behind its LF; when that has not
    come, next_pos = len(data) and b = -1: drop octets with skip_line().  utf8 allows valid UTF-8 (ask str.isascii() of
    the mailbox); lenient takes a mailbox without its <>.  Raises ValueError only for pos outside of data.
    """

def skip_line(data: bytes, pos: int) -> int:
    """Offset behind the next LF; -1 when there is none."""

def parse_mailbox(text: str | bytes) -> tuple[str, str]:
    """(local_part, domain) as written.  Raises ValueError."""

def xtext_encode(text: str) -> str:
    """xtext of the UTF-8 octets of text (RFC 3461 §4)."""

def xtext_decode(text: str) -> str:
    """Raises ValueError on bad xtext, and when a control character or no UTF-8 was hidden in it."""

class ReplyParser:
    """Replies of a server, from octets cut anywhere; lines of 2048 octets and replies of 128 lines at most."""

    broken: bool  # garbage was seen; nothing more will be parsed
    def feed(self, data: bytes) -> list[tuple[int, str, str]]:
        """The replies that are whole now: (code, enhanced status or "", text with "\n" between lines).

        Raises ValueError on garbage; replies in front of it are returned first, then `broken` is True.
        """

# -- mime: MIME structure and header fields ------------------------------------------------------

# Content-Transfer-Encoding as Part.encoding (RFC 2045 §6.1).
ENCODING_7BIT: Final[int]  # 0, also when there is no such field
ENCODING_8BIT: Final[int]  # 1
ENCODING_BINARY: Final[int]  # 2
ENCODING_QUOTED_PRINTABLE: Final[int]  # 3
ENCODING_BASE64: Final[int]  # 4
ENCODING_OTHER: Final[int]  # 5: a word we do not know

@final
class Part:
    """One part: offsets into the content, and what its header says of it.

    The header is [header_start, header_end), the body [body_start, body_end); the empty line lies between.
    """

    @property
    def parent(self) -> int:
        """Index into the list of parts; -1 for the message itself."""
    @property
    def depth(self) -> int:
        """0 for the message itself."""
    @property
    def encoding(self) -> int:
        """One of ENCODING_*."""
    @property
    def media_type(self) -> bytes:
        """ "type/subtype", lower case; b"text/plain" when there is none that can be read (RFC 2045 §5.2)."""
    @property
    def header_start(self) -> int: ...
    @property
    def header_end(self) -> int: ...
    @property
    def body_start(self) -> int: ...
    @property
    def body_end(self) -> int: ...
    @property
    def lines(self) -> int:
        """LF octets in the body."""
    @property
    def eight_bit(self) -> int:
        """Octets above 127 in the body, inner parts included."""
    @property
    def header_eight_bit(self) -> int:
        """Octets above 127 in the header."""
    @property
    def type_field(self) -> tuple[int, int] | None:
        """(start, end) of the Content-Type value, folds included; the first field counts."""
    @property
    def encoding_field(self) -> tuple[int, int] | None:
        """The same of Content-Transfer-Encoding."""
    @property
    def disposition_field(self) -> tuple[int, int] | None:
        """The same of Content-Disposition."""
    @property
    def id_field(self) -> tuple[int, int] | None:
        """The same of Content-ID."""

@final
class MimeScanner:
    """Finds the parts of one message, fed in slices of any size.

    Memory grows with the number of parts, not with the content.  simd=False takes the portable path.
    """

    def __init__(
        self,
        max_depth: int = 32,
        max_parts: int = 1000,
        max_header_octets: int = 262144,
        simd: bool = True,
    ) -> None: ...
    @property
    def limited(self) -> bool:
        """A limit was passed: something was left opaque that should have been split or read."""
    def feed(self, data: Buffer) -> None:
        """Scan the next slice; nothing of it is kept but the beginning of a line that it cuts."""
    def close(self) -> list[Part]:
        """The parts, in the order they begin; the first is the message itself."""

def scan_mime(data: Buffer, max_depth: int = 32, max_parts: int = 1000) -> list[Part]:
    """The parts of content that is there in one piece."""

def find_field(header: Buffer, name: bytes) -> bytes | None:
    """The unfolded value of the first field of that name (case does not matter), or None.

    header: a header section or a whole message; the search ends at the empty line.
    """

def first_fields(header: Buffer, names: Container[bytes]) -> dict[bytes, bytes]:
    """{name: unfolded value} of the first field of each of these names (lower case; 40 octets at most)."""

def iter_fields(header: Buffer) -> list[tuple[bytes, bytes]]:
    """All fields as [(name, unfolded value)], in their order, up to the empty line."""

# -- transfer: Content-Transfer-Encodings --------------------------------------------------------

def encode_base64(data: Buffer, lf: bool = False, end: bool = True, simd: bool = True) -> bytes:
    """Lines of 76 characters with CRLF (lf: LF) between them, and behind the last when end is set."""

def decode_base64(data: Buffer, simd: bool = True) -> bytes:
    """The octets; characters outside the alphabet are passed over, padding ends the data.

    Raises ValueError when the data ends inside a group of four.
    """

def encode_quoted_printable(data: Buffer, lf: bool = False, simd: bool = True) -> bytes:
    """data as text with CRLF line ends (lf: LF), no line longer than 76; other CR and LF are encoded."""

# -- logwriter: the log of the spool -------------------------------------------------------------

RECORD_HEADER_OCTETS: int
BLOCK_OCTETS: int

class LogWriter:
    """One log being written: a thread appends groups of records and syncs them without the GIL.

    append* → submit → (thread: CRC, write, sync, eventfd readable) → completed.  Owns the thread, the eventfd and the
    staging memory; borrows file descriptors.  All methods belong to one thread.
    """

    def __init__(self, group_octets: int = 1048576) -> None: ...
    def fileno(self) -> int:
        """The eventfd: readable when completed() has something to tell."""
    @property
    def pending_octets(self) -> int:
        """Octets appended and not yet completed, padding included."""
    @property
    def writes(self) -> int:
        """Groups completed by the thread so far."""
    @property
    def room_octets(self) -> int:
        """What is left of the segment for further groups (headers and padding included)."""
    @property
    def end_offset(self) -> int:
        """Where records of this segment end so far."""
    @property
    def busy(self) -> bool:
        """True while the thread has groups that completed() has not returned."""
    def use_segment(
        self, fd: int, sequence: int, mark: int, offset: int, limit: int, method: int
    ) -> None:
        """What is appended from now on goes to fd, from offset to limit (whole blocks).

        The caller keeps fd open until every group for it is completed.
        """
    def leave_segment(self) -> None:
        """Nothing can be appended until the next use_segment()."""
    def append(
        self,
        kind: int,
        number: int,
        token: Callable[[int], None],
        payload: Buffer,
        second: Buffer | None = None,
        third: Buffer | None = None,
    ) -> int:
        """Copies one record into the open group; its offset in the segment, or -1 when the segment has no room.

        The payload is the buffers joined.  token comes back from completed() with its group.
        """
    def submit(self) -> bool:
        """Hands what was appended to the thread.  True when there was something."""
    def completed(self) -> list[tuple[int, int, int, list[Callable[[int], None]]]]:
        """(errno or 0, sequence, offset, tokens) for each group finished since the last call, in order."""
    def drain(self) -> None:
        """Returns when everything submitted has been tried (waits without the GIL)."""
    def close(self) -> None:
        """Writes what was submitted, then ends the thread.  The object is of no use afterwards."""

def scan_records(
    segment: Buffer, mark: int, sequence: int, start: int, end: int
) -> tuple[list[tuple[int, int, int, int, int]], list[tuple[int, int]], int]:
    """All whole records between start and end: (records, broken, tail).

    records: (type, group, number, offset, length of the payload); broken: (offset, end) of octets that are no records
    though records follow; tail: offset behind the last whole record.
    """

def find_headers(segment: Buffer, mark: int, start: int, end: int) -> list[int]:
    """Offsets (multiples of 8) where something that carries the mark begins, whole or not."""

def record_is_whole(record: Buffer, mark: int, sequence: int) -> bool:
    """True when the octets begin with an undamaged record of that segment."""

def crc32c(data: Buffer, crc: int = 0, portable: bool = False) -> int:
    """CRC-32C of data, continued from crc.  portable=True leaves the processor's instruction unused (for tests)."""

def encode_number(number: int) -> str:
    """Twelve base-32 digits of a 60-bit number; they sort like the numbers."""

# -- store_index: the records of a mailbox --------------------------------------------------------

# A record, little endian: uid u32, size u32, flags u64, modseq u64, message u64, internal date i64, save date u32,
# sent date u32.  Records are in ascending order of UID.  Ranges are pairs of u32, (first, last), ascending and apart.
RECORD_OCTETS: int

def store_flags(
    records: Buffer, ranges: Buffer, clear: int, set: int, modseq: int, unchanged_since: int
) -> tuple[bytes | None, bytes, bytes, int, int]:
    """Flags become (flags & ~clear) | set in all records of the ranges; a changed record gets the modseq.

    Records changed after unchanged_since are left alone (2**64 - 1: none are).  Returns (records, or None when nothing
    changed; the changed records; UIDs left alone as u32; how many more are without \\Seen, with \\Deleted).
    """

def apply_flag_log(records: Buffer, log: Buffer) -> bytes:
    """The records with these changes of flags, in their order, each to records of a lower modseq than its own.

    A change that a record has had already, or that came before what the record is now, does nothing to it.  Returns
    `records` itself when nothing is different.  log: first UID u32, last UID u32, clear u64, set u64, modseq u64 each.
    """

def split_records(records: Buffer, ranges: Buffer, must: int = 0) -> tuple[bytes, bytes]:
    """(records outside of the ranges or without a flag of must, the others): kept and removed, in order."""

def copy_records(
    records: Buffer, first_uid: int, modseq: int, save_date: int, keyword_bits: bytes | None = None
) -> bytes:
    """The records as they are in another mailbox: UIDs from first_uid on, that modseq and save date.

    keyword_bits: the bit that each keyword of theirs (bit 8, 9 …) has there, an octet each; None: the same.
    """

def or_flags(records: Buffer) -> int:
    """The flags that any of the records has."""

def find_records(
    records: Buffer, must: int = 0, must_not: int = 0, modseq_above: int = 0
) -> bytes:
    """UIDs, as u32, of the records with all flags of must, none of must_not, and a modseq above that."""

def sum_records(records: Buffer) -> tuple[int, int, int, int, int, int]:
    """(records, without \\Seen, with \\Deleted, octets, highest modseq, first UID without \\Seen or 0)."""

def records_ascend(records: Buffer, above: int = 0) -> bool:
    """True when the UIDs ascend strictly, all of them above that one."""

def record_column(records: Buffer, column: str) -> bytes:
    """One field of all records: u32 (uid, size, save_date, sent_date) or 64-bit values (the others), joined."""

# -- imap_format: strings ---------------------------------------------------------------------------

def imap_string(value: bytes) -> bytes:
    """A quoted string, or a literal where that cannot be (8-bit octets, CR, LF; a NUL is left out)."""

def imap_nstring(value: bytes | None) -> bytes:
    """The same; NIL for None."""

"""The arguments of SEARCH, SORT, THREAD and ESEARCH: keys, return options, charsets.

    Owns      the search keys; SearchRequest, Return, Sources; search_request(), sort_request(), thread_request(),
              esearch_request(); BadCharset
    Flow      command cursor → request → server/imap/search.py
    Limits    DEPTH_MAX keys within keys, KEYS_MAX keys; the command's length is the reader's
    Errors    ImapSyntaxError; BadCharset for a charset that is not known, or text that is not of it
    Standards RFC 9051 §6.4.4, §9; RFC 3501 §6.4.4; RFC 4731, RFC 5267, RFC 9394 (RETURN); RFC 5182 ("$", SAVE);
              RFC 5032 (OLDER, YOUNGER); RFC 7162 §3.1.5 (MODSEQ); RFC 8474 (EMAILID, THREADID); RFC 8514 (SAVED…);
              RFC 6203 (FUZZY, RELEVANCY); RFC 5256, RFC 5957 (SORT, THREAD); RFC 7377 (ESEARCH); RFC 9738 §3.2
"""

from __future__ import annotations

import codecs
from array import array
from typing import Any, NamedTuple

import msgspec

from gateway._native import ImapCommand, ImapSyntaxError
from gateway.mail.structure import NO_CHARSETS
from gateway.protocol.imap.fetch import partial_range

DEPTH_MAX = 250  # OR of OR of OR: how clients ask for one of many
KEYS_MAX = 1000
DAY_S = 86_400
FOREVER = 2**63 - 1
UID_MAX = 2**32 - 1

CHARSETS = b"US-ASCII UTF-8"  # the ones BADCHARSET recommends; all of Python's are understood


class BadCharset(Exception):
    """NO [BADCHARSET]: the text says what is wrong."""

    saves = False  # there was RETURN (SAVE): then "$" is nothing (RFC 5182 §2.1)


# -- keys ----------------------------------------------------------------------------------------------------------


class And(NamedTuple):
    """All of them; () is ALL."""

    keys: tuple[Key, ...]


class Or(NamedTuple):
    """One of them at least."""

    keys: tuple[Key, ...]


class Not(NamedTuple):
    key: Key


class Flag(NamedTuple):
    """A system flag or a keyword."""

    name: str


class Recent(NamedTuple):
    """\\Recent (RFC 3501 §2.3.2)."""


class Between(NamedTuple):
    """A number of the index, both ends included: size (octets), modseq, internal_date, save_date (seconds)."""

    field: str
    low: int
    high: int


class Age(NamedTuple):
    """RFC 5032: the internal date is at least (older) or at most so many seconds ago."""

    seconds: int
    older: bool


class Sent(NamedTuple):
    """The Date field's day, as it is written there; both ends included, midnights in seconds since 1970."""

    low: int
    high: int


class Numbers(NamedTuple):
    """A set as sent (ImapCommand.sequence_set()); None: "$"."""

    pairs: bytes | None
    uid: bool


class Text(NamedTuple):
    """where: "text", "body" or the name of a header field, lower case."""

    where: str
    text: str
    fuzzy: bool = False


class ObjectId(NamedTuple):
    """RFC 8474 §5.3; thread: THREADID."""

    value: str
    thread: bool


Key = And | Or | Not | Flag | Recent | Between | Age | Sent | Numbers | Text | ObjectId

ALL = And(())

_SIMPLE: dict[bytes, Key] = {
    b"ALL": ALL,
    b"NEW": And((Recent(), Not(Flag("\\Seen")))),
    b"OLD": Not(Recent()),
    b"RECENT": Recent(),
    b"SAVEDATESUPPORTED": ALL,  # RFC 8514 §4.3: every message has one
}
for _name in ("Answered", "Deleted", "Draft", "Flagged", "Seen"):
    _SIMPLE[_name.upper().encode()] = Flag("\\" + _name)
    _SIMPLE[b"UN" + _name.upper().encode()] = Not(Flag("\\" + _name))

_NUMBERS = frozenset(b"0123456789*$")  # what a sequence set begins with; peek() at the end of a command is -1
_TEXTS = {word.upper().encode(): word for word in ("bcc", "body", "cc", "from", "subject", "text", "to")}
_DATES = {b"SENT": "", b"SAVED": "save_date", b"": "internal_date"}
_WITH_ARGUMENT = frozenset(
    (*_TEXTS, *(prefix + relation for prefix in _DATES for relation in (b"BEFORE", b"ON", b"SINCE")),
     b"EMAILID", b"FUZZY", b"HEADER", b"KEYWORD", b"LARGER", b"MODSEQ", b"NOT", b"OLDER", b"OR", b"SMALLER",
     b"THREADID", b"UID", b"UIDAFTER", b"UIDBEFORE", b"UNKEYWORD", b"YOUNGER")
)  # fmt: skip


# -- requests ------------------------------------------------------------------------------------------------------


class Return(msgspec.Struct, frozen=True):
    """What the client wants to be told (RFC 4731 §3.1)."""

    min: bool = False
    max: bool = False
    all: bool = False
    count: bool = False
    save: bool = False  # RFC 5182
    update: bool = False  # RFC 5267 §4
    context: bool = False
    relevancy: bool = False  # RFC 6203 §4
    partial: tuple[int, int] | None = None  # positions from 1 on, first ≤ last; negative: from the end (RFC 9394)

    @property
    def nothing_but_save(self) -> bool:
        return self.save and not (
            self.min or self.max or self.all or self.count or self.update or self.relevancy or self.partial
        )


class SearchRequest(NamedTuple):
    """SEARCH; SORT and THREAD have more."""

    key: Key
    returns: Return | None  # None: there was no RETURN
    charset: bool = False  # one was named
    order: tuple[tuple[bytes, bool], ...] = ()  # SORT: (criterion, REVERSE)
    algorithm: bytes = b""  # THREAD


class Sources(NamedTuple):
    """RFC 7377 §2.2: where ESEARCH looks.  filters: (what, names); () is the selected mailbox."""

    filters: tuple[tuple[bytes, tuple[str, ...]], ...]


class _Keys:
    """Reads search keys off a command."""

    def __init__(self, command: ImapCommand, codec: str) -> None:
        self._command = command
        self._codec = codec
        self._left = KEYS_MAX

    def all(self) -> Key:
        """search-key *(SP search-key), to the end of the command or a parenthesis."""
        return self._several(0, -1)

    def _several(self, depth: int, closing: int) -> Key:
        keys = [self._key(depth)]
        while self._command.peek() != closing:
            self._command.space()
            keys.append(self._key(depth))
        return keys[0] if len(keys) == 1 else And(tuple(keys))

    def _key(self, depth: int) -> Key:
        command = self._command
        self._left -= 1
        if depth > DEPTH_MAX or self._left < 0:
            raise ImapSyntaxError("The search has too many keys")
        following = command.peek()
        if following == ord("("):
            command.expect(b"(")
            key = self._several(depth + 1, ord(")"))
            command.expect(b")")
            return key
        if following in _NUMBERS:
            return Numbers(command.sequence_set(), uid=False)
        word = command.word()
        simple = _SIMPLE.get(word)
        if simple is not None:
            return simple
        if word not in _WITH_ARGUMENT:
            raise ImapSyntaxError("Unknown search key " + word.decode("ascii", "replace"))
        command.space()
        where = _TEXTS.get(word)
        if where is not None:
            return Text(where, self._text())
        if word == b"NOT":
            return Not(self._key(depth + 1))
        if word == b"OR":
            one = self._key(depth + 1)
            command.space()
            return Or((one, self._key(depth + 1)))
        if word == b"FUZZY":  # RFC 6203 §3; keys that are no texts cannot be fuzzy
            return _made_fuzzy(self._key(depth + 1))
        if word == b"HEADER":
            name = command.astring()
            command.space()
            return Text(_field_name(name), self._text())
        if word in (b"KEYWORD", b"UNKEYWORD"):
            flag = Flag(command.flag())
            return flag if word == b"KEYWORD" else Not(flag)
        return self._number_key(word) or self._date_key(word)

    def _number_key(self, word: bytes) -> Key | None:
        command = self._command
        if word == b"LARGER":
            return Between("size", command.number64() + 1, FOREVER)
        if word == b"SMALLER":
            return Between("size", 0, command.number64() - 1)
        if word == b"UID":
            return Numbers(command.sequence_set(), uid=True)
        if word in (b"UIDAFTER", b"UIDBEFORE"):  # RFC 9738 §3.2
            uid = command.nz_number()
            low, high = (uid + 1, UID_MAX) if word == b"UIDAFTER" else (1, uid - 1)
            return Numbers(array("I", (low, high)).tobytes(), uid=True) if low <= high else Not(ALL)
        if word in (b"OLDER", b"YOUNGER"):
            return Age(command.nz_number(), word == b"OLDER")
        if word == b"MODSEQ":
            if command.peek() == ord('"'):  # RFC 7162 §3.1.5: we have one for each message, not for each flag
                command.string()
                command.space()
                if command.word() not in (b"ALL", b"PRIV", b"SHARED"):
                    raise ImapSyntaxError("The entry type is all, priv or shared")
                command.space()
            return Between("modseq", command.number64(), FOREVER)
        if word in (b"EMAILID", b"THREADID"):
            return ObjectId(command.astring().decode("ascii", "replace"), word == b"THREADID")
        return None

    def _date_key(self, word: bytes) -> Key:
        prefix = next(one for one in _DATES if word.startswith(one))
        relation = word.removeprefix(prefix)
        day = self._command.date()
        low = -FOREVER if relation == b"BEFORE" else day
        high = {b"BEFORE": day - 1, b"ON": day + DAY_S - 1, b"SINCE": FOREVER}[relation]
        return Sent(low, high) if prefix == b"SENT" else Between(_DATES[prefix], low, high)

    def _text(self) -> str:
        octets = self._command.astring()
        try:
            return octets.decode(self._codec)
        except UnicodeDecodeError:
            raise BadCharset(f"The text is no {self._codec}") from None


def _made_fuzzy(key: Key) -> Key:
    if isinstance(key, Text):
        return key._replace(fuzzy=True)
    if isinstance(key, And | Or):
        return type(key)(tuple(_made_fuzzy(one) for one in key.keys))
    return Not(_made_fuzzy(key.key)) if isinstance(key, Not) else key


def _field_name(name: bytes) -> str:
    text = name.decode("latin-1").lower()
    # HEADER TEXT is a field of that name, and not the whole message
    return text + ":" if text in ("text", "body") else text


def has_sequence_numbers(key: Key) -> bool:
    """It names messages by numbers that are no UIDs."""
    if isinstance(key, And | Or):
        return any(has_sequence_numbers(one) for one in key.keys)
    if isinstance(key, Not):
        return has_sequence_numbers(key.key)
    return isinstance(key, Numbers) and not key.uid and key.pairs is not None


def codec_of(charset: bytes) -> str:
    """The codec for a charset of the client's; raises BadCharset."""
    try:
        name = codecs.lookup(charset.decode("ascii", "replace")).name
        b"a".decode(name)  # LookupError for codecs that are not of text
    except (LookupError, ValueError):
        name = ""
    if not name or name in NO_CHARSETS:
        raise BadCharset(f"The charset {charset.decode('ascii', 'replace')} is not known")
    return name


# -- the commands' arguments -----------------------------------------------------------------------------------------


def search_request(command: ImapCommand) -> SearchRequest:
    """All behind SEARCH or UID SEARCH (RFC 9051 §9: search-program)."""
    command.space()
    return _program(command)


def _program(command: ImapCommand) -> SearchRequest:
    returns = _returns(command)
    named, codec = False, "utf-8"
    try:
        if command.accept(b"CHARSET "):
            named, codec = True, codec_of(command.astring())
            command.space()
        key = _Keys(command, codec).all()
    except BadCharset as error:
        error.saves = returns is not None and returns.save
        raise
    command.end()
    return SearchRequest(key, returns, named)


SORT_CRITERIA = frozenset(
    (b"ARRIVAL", b"CC", b"DATE", b"DISPLAYFROM", b"DISPLAYTO", b"FROM", b"RELEVANCY", b"SIZE", b"SUBJECT", b"TO")
)
ALGORITHMS = frozenset((b"ORDEREDSUBJECT", b"REFERENCES", b"REFS"))


def sort_request(command: ImapCommand) -> SearchRequest:
    """All behind SORT or UID SORT (RFC 5256 §5, RFC 5267 §3)."""
    command.space()
    returns = _returns(command)
    command.expect(b"(")
    order: list[tuple[bytes, bool]] = []
    while True:
        word = command.word()
        reverse = word == b"REVERSE"
        if reverse:
            command.space()
            word = command.word()
        if word not in SORT_CRITERIA:
            raise ImapSyntaxError("Unknown sort criterion " + word.decode("ascii", "replace"))
        if all(word != known for known, _ in order):  # a second time it decides nothing
            order.append((word, reverse))
        if command.accept(b")"):
            break
        command.space()
    return _charset_and_key(command)._replace(returns=returns, order=tuple(order))


def thread_request(command: ImapCommand) -> SearchRequest:
    """All behind THREAD or UID THREAD (RFC 5256 §5)."""
    command.space()
    algorithm = command.word()
    if algorithm not in ALGORITHMS:
        raise ImapSyntaxError("Unknown threading algorithm " + algorithm.decode("ascii", "replace"))
    return _charset_and_key(command)._replace(algorithm=algorithm)


def _charset_and_key(command: ImapCommand) -> SearchRequest:
    command.space()
    codec = codec_of(command.astring())
    command.space()
    key = _Keys(command, codec).all()
    command.end()
    return SearchRequest(key, None, charset=True)


def esearch_request(command: ImapCommand) -> tuple[Sources, SearchRequest]:
    """All behind ESEARCH (RFC 7377 §2.1)."""
    filters: list[tuple[bytes, tuple[str, ...]]] = []
    command.space()
    if command.accept(b"IN ("):
        filters.append(_filter(command))
        while not command.accept(b")"):
            command.space()
            if command.peek() == ord("("):
                raise ImapSyntaxError("Unknown scope option")  # RFC 7377 §2.2 knows none
            filters.append(_filter(command))
        command.space()
    return Sources(tuple(filters)), _program(command)


_WHOLE = (b"SELECTED", b"INBOXES", b"PERSONAL", b"SUBSCRIBED")
_NAMED = (b"MAILBOXES", b"SUBTREE", b"SUBTREE-ONE")


def _filter(command: ImapCommand) -> tuple[bytes, tuple[str, ...]]:
    """RFC 5465 §6: filter-mailboxes, of which RFC 7377 §6 leaves SELECTED-DELAYED out."""
    word = command.word()
    if word in _WHOLE:
        return word, ()
    if word not in _NAMED:
        raise ImapSyntaxError("Unknown source " + word.decode("ascii", "replace"))
    command.space()
    if not command.accept(b"("):
        return word, (command.mailbox(),)
    names = [command.mailbox()]
    while not command.accept(b")"):
        command.space()
        names.append(command.mailbox())
    return word, tuple(names)


_PLAIN_OPTIONS = {
    b"MIN": "min", b"MAX": "max", b"ALL": "all", b"COUNT": "count", b"SAVE": "save",
    b"UPDATE": "update", b"CONTEXT": "context", b"RELEVANCY": "relevancy",
}  # fmt: skip


def _returns(command: ImapCommand) -> Return | None:
    """[RETURN (…) SP]; RETURN () is RETURN (ALL) (RFC 4731 §3.1)."""
    if not command.accept(b"RETURN ("):
        return None
    options: dict[str, Any] = {}
    if not command.accept(b")"):
        while True:
            word = command.word()
            if word == b"PARTIAL":
                if "partial" in options:
                    raise ImapSyntaxError("PARTIAL may be asked for once")
                command.space()
                options["partial"] = partial_range(command)
            elif word in _PLAIN_OPTIONS:
                options[_PLAIN_OPTIONS[word]] = True
            else:
                raise ImapSyntaxError("Unknown return option " + word.decode("ascii", "replace"))
            if command.accept(b")"):
                break
            command.space()
    command.space()
    if "partial" in options and "all" in options:  # RFC 9394 §3.1, RFC 5267 §4.4
        raise ImapSyntaxError("PARTIAL and ALL exclude each other")
    if not options.keys() - {"context"}:
        options["all"] = True
    return Return(**options)

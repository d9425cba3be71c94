"""Commands of IMAP, and names of mailboxes: a page of the interface, see __init__.pyi."""

from typing import Any, Final, final

class ImapSyntaxError(ValueError):
    """The command is not what the grammar wants.  The text is for the tagged BAD, and has nothing of the client's."""

# What ImapReader.read() returns.
NEED_MORE: Final[int]  # 0
COMMAND: Final[int]  # 1: reader.command is whole
LITERAL: Final[int]  # 2: accept_inline(), accept_target() or refuse(); reader.command is what came before it
REFUSED: Final[int]  # 3: what was refused is passed: its tagged response is due
COMMAND_TOO_LONG: Final[int]  # 4: REFUSED will follow

@final
class ImapCommand:
    """One command, and a cursor that stands behind its name at first.

    Methods are named after the grammar's rules (RFC 9051 §9): each passes what it returns, and raises ImapSyntaxError,
    with the cursor where it was or at the octet that is wrong, when something else comes.  Nothing is passed silently:
    space() takes the one SP between arguments.
    """

    @property
    def tag(self) -> bytes:
        """b"" when the line has none: the response is untagged then."""
    @property
    def name(self) -> bytes:
        """In upper case, with UID: b"UID FETCH"; b"" when there is none that can be read."""
    @property
    def utf8(self) -> bool:
        """Names of mailboxes are UTF-8 (RFC 6855, RFC 9051 §5.1), not modified UTF-7."""
    @property
    def held_octets(self) -> int:
        """Text and literals in memory."""
    def rewind(self) -> None:
        """The cursor goes back to where it stood at first."""
    def space(self) -> None: ...
    def expect(self, token: bytes) -> None:
        """Pass token, which must come next; letters in any case.  Parentheses are counted, to bound their depth."""
    def accept(self, token: bytes) -> bool:
        """The same if it comes next; False when it does not."""
    def peek(self) -> int:
        """The next octet; -1 at the end."""
    def at_end(self) -> bool: ...
    def rest(self) -> bytes:
        """The octets that were not passed yet; the cursor stays."""
    def end(self) -> None:
        """Raises unless nothing is left."""
    def atom(self) -> bytes: ...
    def word(self) -> bytes:
        """A keyword in upper case: all up to SP ( ) [ ] < > or a string: BODY.PEEK, RFC822.SIZE, UNSEEN."""
    def string(self) -> bytes: ...
    def astring(self) -> bytes: ...
    def nstring(self) -> bytes | None: ...
    def literal(self) -> Any:
        """Octets of a literal, or what accept_target() was given for it."""
    def awaits_literal(self) -> bool:
        """True when the literal that read() announced begins here: peek() tells literal8 (~) from literal."""
    def initial_response(self) -> bytes | None:
        """The rest of AUTHENTICATE, decoded: None without initial response, b"" for "=" (RFC 4959 §3)."""
    def flag(self) -> str: ...
    def flag_list(self) -> list[str]: ...
    def mailbox(self) -> str:
        """Decoded; INBOX in any case is "INBOX"."""
    def list_mailbox(self) -> str:
        """The same of a pattern of LIST; INBOX is left as it is."""
    def number(self) -> int: ...
    def nz_number(self) -> int: ...
    def number64(self) -> int: ...
    def sequence_set(self) -> bytes | None:
        """Pairs of u32 as sent, 0 for "*"; None for "$" (RFC 5182)."""
    def date(self) -> int:
        """Midnight of the day, in seconds since 1970."""
    def date_time(self) -> int:
        """Seconds since 1970 (UTC)."""

@final
class ImapReader:
    """Finds commands and literals in octets that are cut anywhere.

    text_octets_max: of a command without its literals; items_max: spaces between arguments; depth_max: parentheses.
    A line ends with LF, a CR before it belongs to the end.  Spaces at the end of a command are taken away.
    """

    utf8: bool  # of the commands to come
    text_octets_max: int
    items_max: int
    depth_max: int
    def __init__(
        self, text_octets_max: int, items_max: int = 10_000, depth_max: int = 32
    ) -> None: ...
    @property
    def command(self) -> ImapCommand:
        """What the last read() was about; gone with the next read() behind it."""
    @property
    def literal_size(self) -> int: ...
    @property
    def literal_synchronizing(self) -> bool:
        """The client waits for "+" (RFC 7888)."""
    @property
    def unread_octets(self) -> int: ...
    def feed(self, data: bytes) -> None: ...
    def read(self) -> int:
        """NEED_MORE, COMMAND, LITERAL, REFUSED or COMMAND_TOO_LONG."""
    def accept_inline(self) -> None:
        """Answer LITERAL: it becomes part of the command's octets."""
    def accept_target(self, target: Any) -> None:
        """Answer LITERAL: read() gives its octets to target.write(), as bytes or memoryview of bytes."""
    def refuse(self) -> bool:
        """Answer LITERAL: True when that ends the command; else REFUSED comes when it was passed to its end."""
    def read_line(self, octets_max: int) -> bytes | bool | None:
        """A line outside of commands, without its end.  None: not whole yet.  True: it was longer, and is passed."""
    def take_rest(self) -> bytes:
        """All input that was not read, which is the caller's now."""
    def clear(self) -> None:
        """Forget all input and the command."""

def encode_utf7(name: str) -> bytes:
    """A mailbox's name in modified UTF-7 (RFC 3501 §5.1.3)."""

def decode_utf7(octets: bytes) -> str:
    """The name.  Raises ValueError for what encode_utf7() would not have written."""

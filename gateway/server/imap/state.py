"""What a command knows of its session, and how it ends.

Owns      the four states; Completed, No, Bad; Handler, Capability; Selected
Standards RFC 9051 §3 (states), §7.1 (status responses), RFC 5530 (response codes)
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.store.errors import StoreError

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.access import Place
    from gateway.server.imap.context import Context
    from gateway.server.imap.grant import Grant
    from gateway.server.imap.service import ImapService
    from gateway.server.imap.session import ImapSession
    from gateway.server.imap.view import View
    from gateway.store.model import Mailbox

# What a command may be given in; a session is in one of the first three at a time.
IN_NOT_AUTHENTICATED, IN_AUTHENTICATED, IN_SELECTED = 1, 2, 4
NOT_AUTHENTICATED = IN_NOT_AUTHENTICATED
AUTHENTICATED = IN_AUTHENTICATED | IN_SELECTED
SELECTED = IN_SELECTED
ANY = NOT_AUTHENTICATED | AUTHENTICATED


class Completed(NamedTuple):
    """OK, with this text; "": "NAME completed".  code: a response code without its brackets."""

    text: str = ""
    code: bytes = b""


# Returned by a command that somebody else completes: IDLE until DONE, a login that waits for its client.
PENDING = Completed("pending")


class No(Exception):
    """The command fails: NO, with a response code without its brackets."""

    def __init__(self, text: str, code: bytes = b"") -> None:
        super().__init__(text)
        self.code = code


class Bad(Exception):
    """The client broke the protocol: BAD."""

    def __init__(self, text: str, code: bytes = b"") -> None:
        super().__init__(text)
        self.code = code


def no_of(error: StoreError) -> No:
    """How IMAP says what the store says (RFC 5530)."""
    code = error.code or ("UNAVAILABLE" if error.transient else "CANNOT")
    return No(str(error), code.encode())


Outcome = Completed | None  # None: "NAME completed"
Function = Callable[["ImapSession", "ImapCommand"], Outcome | Coroutine[Any, Any, Outcome]]


class Handler(NamedTuple):
    """A command.

    A plain function runs at once and must not block; a coroutine function may wait.  expunges: EXPUNGE or VANISHED may
    be reported before its tagged line; False for FETCH, STORE, SEARCH, SORT and THREAD by sequence number (RFC 9051
    §7.5.1).  by_sequence: it is about sequence numbers, which do not exist under UIDONLY (RFC 9586 §3).
    indexed: the index of the selected mailbox is loaded before it runs.  literal: takes the large literals of APPEND
    and its kin: machine.accept_literal() or refuse_literal(), now or after wait().
    """

    function: Function
    states: int = ANY
    expunges: bool = True
    by_sequence: bool = False
    indexed: bool = True
    literal: Callable[[ImapSession, ImapCommand, int], None] | None = None


class Capability(NamedTuple):
    """An extension as CAPABILITY names it.

    name: or a function of the service that gives it (b"APPENDLIMIT=1000"; b"": not announced).  when: is it on?
    states: in which it is announced; most are of use only after the login.
    """

    name: bytes | Callable[[ImapService], bytes]
    when: Callable[[ImapService], bool] | None = None
    states: int = AUTHENTICATED


class Selected:
    """The selected mailbox of a session."""

    __slots__ = ("contexts", "grant", "is_telling", "last_fetch", "place", "read_only", "view")

    def __init__(self, place: Place, view: View, read_only: bool) -> None:
        self.place = place
        self.view = view
        self.read_only = read_only
        self.grant: Grant | None = None  # of somebody else's mailbox
        self.contexts: list[Context] = []  # searches that are kept up to date
        self.is_telling = False  # of them
        self.last_fetch: Any = None  # fetch.py's

    @property
    def mailbox(self) -> Mailbox:
        """As the worker knows it now: its keywords, counts, HIGHESTMODSEQ."""
        return self.view.mailbox

    @property
    def uidvalidity(self) -> int:
        return self.view.mailbox.uidvalidity

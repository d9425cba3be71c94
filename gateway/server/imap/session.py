"""One IMAP session: event → command → response.

Owns      ImapSession
Flow      see server/session.py; a COMMAND is looked up in commands.HANDLERS, its function answers it at once or later,
          then what changed in the selected mailbox is reported (updates.py), then the tagged line goes out
Limits    [imap] of the configuration and those of every session
Errors    ImapSyntaxError and Bad are BAD, No and StoreError are NO with their response code; the session goes on
Blocking  never
Security  the machine forgets what was sent before TLS; before the login nothing of the store is touched
Standards RFC 9051 §3, §5.2 (unsolicited updates), §5.4 (autologout), §5.5 (one command at a time)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from array import array
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway._native import ImapCommand, ImapSyntaxError, record_column
from gateway.accounts.model import Identity, Refusal, SourceError
from gateway.protocol.imap import machine
from gateway.protocol.imap.response import in_progress
from gateway.server.first_read import tell_first_read
from gateway.server.imap import updates
from gateway.server.imap.access import Place, find_place
from gateway.server.imap.capability import capabilities
from gateway.server.imap.commands import HANDLERS
from gateway.server.imap.context import tell_contexts
from gateway.server.imap.service import ImapService
from gateway.server.imap.state import (
    IN_AUTHENTICATED,
    IN_NOT_AUTHENTICATED,
    IN_SELECTED,
    PENDING,
    Bad,
    Completed,
    Handler,
    No,
    Outcome,
    Selected,
    no_of,
)
from gateway.server.imap.watch import Watch
from gateway.server.login import LoginSession
from gateway.server.session import FLUSH_OCTETS, afterwards
from gateway.store.errors import StoreError
from gateway.store.model import Quota
from gateway.store.store import Account
from gateway.store.upload import WAITING_OCTETS, Upload

if TYPE_CHECKING:
    from gateway.accounts.model import Account as Owner
    from gateway.server.imap.grant import Grant
    from gateway.server.imap.notify import Notify

logger = logging.getLogger(__name__)

COMMAND = machine.COMMAND
PROGRESS_S = 10.0  # RFC 9585 §4: no more often than every 10 seconds


class ImapSession(LoginSession):
    """Drives one ImapServerMachine over one Connection."""

    __slots__ = (
        "account",
        "command",
        "enabled",
        "identity",
        "idle_since",
        "idling",
        "limited",
        "mechanisms",
        "mid_response",
        "notify",
        "passwords",
        "progress",
        "selected",
        "uploads",
    )

    _service: ImapService
    machine: machine.ImapServerMachine

    def __init__(self, service: ImapService, client: str = "", client_ip: str = "") -> None:
        super().__init__(service, client, client_ip)
        self.account: Account = None  # type: ignore[assignment]  # set by the login
        self.identity: Identity | None = None
        self.selected: Selected | None = None
        self.idling = False  # IDLE waits for DONE
        self.idle_since = 0.0  # time.monotonic()
        self.command: ImapCommand | None = None  # that is being answered
        self.progress = _NO_PROGRESS  # (done, all there is to do) of it, where it can be told
        self.limited = b""  # the code that tells how far the command came that is about too many messages
        self.mid_response = False  # a response was sent in part: nothing may come between
        self.notify: Notify | None = None  # what it wants to hear of unasked (RFC 5465)
        self.enabled: set[bytes] = set()  # what the client may be sent beyond RFC 3501 (RFC 5161)
        self.mechanisms: tuple[str, ...] = ()  # of SASL, that may be used now
        self.passwords = False  # LOGIN may be used now
        self.uploads: list[Upload] = []  # literals of the command that is being sent

    @property
    def service(self) -> ImapService:
        return self._service

    @property
    def state(self) -> int:
        """IN_NOT_AUTHENTICATED, IN_AUTHENTICATED or IN_SELECTED."""
        if self.selected is not None:
            return IN_SELECTED
        return IN_AUTHENTICATED if self.account is not None else IN_NOT_AUTHENTICATED

    # -- what commands use -------------------------------------------------------------------------------------------

    def capabilities(self) -> bytes:
        """What CAPABILITY lists now."""
        return capabilities(self)

    async def place(self, name: str, *rights: str) -> Place:
        """The mailbox of that name; with rights it must exist, and the session must have them.  Raises No."""
        return await find_place(self, name, *rights)

    async def catch_up(self, expunges: bool = True) -> None:
        """The view is as new as the store; what that changes is reported."""
        selected = self.selected
        if selected is not None:
            self.poll()
            if selected.view.watch.is_stale:
                with contextlib.suppress(StoreError):  # logged there; the next command tries again
                    await selected.view.watch.refresh()
            if self.selected is selected and not selected.view.is_told:
                updates.report(self, expunges)
            if selected.contexts:
                await tell_contexts(self)

    @property
    def own_quota(self) -> Quota:
        """What the session's own account may keep."""
        return _quota(self.identity.account if self.identity is not None else None)

    async def quota_of(self, owner: str) -> Quota:
        """What that account may keep."""
        if owner == self.account_name:
            return self.own_quota
        return _quota(await self._service.authenticator.directory.find(owner))

    def untagged(self, line: bytes) -> None:
        """"* line", in one piece."""
        self.machine.untagged(line)

    def send(self, *pieces: bytes | memoryview) -> None:
        """Whole responses as they are to be sent, with "* " and CRLF."""
        self.machine.send(*pieces)

    async def drained(self) -> None:
        """After every 64 KiB of send(): goes on when the client has taken what there is too much of."""
        if self.machine.queued_octets >= FLUSH_OCTETS or not self._writable:
            await self.write_out()

    def break_off(self, error: Exception) -> None:
        """A response that was sent in part cannot be finished: only the end of the connection keeps us in step."""
        logger.error("session %s: a response was broken off: %s", self.session_id, error)
        self._reason = "internal error"
        self._connection.abort()

    def poll(self) -> None:
        """What other workers committed before the client's command is known afterwards (is_stale)."""
        self._service.watches.poll()

    def count_retrieved(self, messages: int, octets: int) -> None:
        """So many messages are sent, or parts of them."""
        metrics = self._service.metrics
        metrics.retrieved_total += messages
        metrics.retrieved_octets_total += octets

    def first_read(self, records: bytes) -> None:
        """These messages became \\Seen because their text was fetched."""
        assert self.selected is not None
        uids = array("I", record_column(records, "uid"))
        keys = array("Q", record_column(records, "message"))
        afterwards(self._trace(self.selected.place.account, self.selected.mailbox.name, uids, keys))

    async def _trace(self, account: Account, mailbox: str, uids: array[int], keys: array[int]) -> None:
        service = self._service
        trace = partial(service.log.event, "fetched", session=self.session_id, service=service.name)
        with contextlib.suppress(StoreError):
            await tell_first_read(account, mailbox, uids, keys, trace)

    def leave_mailbox(self) -> None:
        """Forget the selected mailbox."""
        if self.selected is not None:
            selected, self.selected = self.selected, None
            view, watch = selected.view, selected.view.watch
            watch.tell_no_more(self)
            watch.views.discard(view)
            if selected.grant is not None:
                selected.grant.end()
            self._service.watches.leave(watch)
            if not selected.read_only and view.claims_recent:
                afterwards(_claim_recent(watch))

    def sign_in(self, identity: Identity) -> None:
        """The client is this account from now on."""
        self.identity = identity
        self.account_name = identity.account.name
        self.account = self._service.store.account(self.account_name)
        self.machine.authenticated = True

    def logged_in(self, identity: Identity) -> None:
        self.sign_in(identity)
        self.complete(b"OK", Completed("Logged in", b"CAPABILITY " + capabilities(self)))
        self.resume()

    def refuse_login(self, refusal: Refusal) -> None:
        code = refusal.imap
        if code == "BAD":
            self.complete(b"BAD", Completed(refusal.text))
        else:
            self.complete(b"NO", Completed(refusal.text, code.encode()))

    def sign_out(self) -> None:
        """The client is nobody again (RFC 8437 §3); TLS stays."""
        self.leave_mailbox()
        self.leave_notify()
        self.identity, self.account_name = None, ""
        self.account = None  # type: ignore[assignment]  # as before the login
        self.enabled.clear()
        self.machine.authenticated = self.machine.utf8 = False
        self.know_peer(tls=self.peer.tls)

    def enable(self, word: bytes) -> None:
        """The client understands this from now on (RFC 5161)."""
        self.enabled.add(word)
        if self.selected is not None:
            self.selected.last_fetch = None  # its responses look different now
        if word in (b"IMAP4REV2", b"UTF8=ACCEPT"):  # RFC 9051 §5.1, RFC 6855 §3
            self.machine.utf8 = True

    def enable_condstore(self) -> None:
        """A command about MODSEQ tells that the client knows them (RFC 7162 §3.1)."""
        if b"CONDSTORE" not in self.enabled:
            self.enabled.add(b"CONDSTORE")
            if self.selected is not None:
                modseq = self.selected.mailbox.highestmodseq
                self.untagged(b"OK [HIGHESTMODSEQ %d] Enabled" % modseq)

    def leave_notify(self) -> None:
        """Nothing is registered any more."""
        if self.notify is not None:
            self.notify.close()
            self.notify = None

    @property
    def is_closed(self) -> bool:
        return self._connection.closed

    @property
    def is_free(self) -> bool:
        """A notification may be sent now: no command is being answered, and the client reads."""
        return (
            (self.command is None or self.idling)
            and not self.mid_response
            and self._writable
            and not self.machine.closing
            and not self._connection.closed
        )

    # -- the connection ----------------------------------------------------------------------------------------------

    def open(self, *, tls: bool, refusal: str) -> None:
        self.machine = machine.ImapServerMachine(self._service.settings)
        self.know_peer(tls=tls)
        if refusal:
            self.machine.stop(b"* BYE [UNAVAILABLE] " + refusal.encode() + b"\r\n")
        elif self._service.preauth:
            self.later(self._let_in(self._service.preauth))
        else:
            self._greet(b"OK")

    def _greet(self, status: bytes) -> None:
        hostname = self._service.hostname.encode()
        self.untagged(b"%b [CAPABILITY %b] %b IMAP ready" % (status, capabilities(self), hostname))

    async def _let_in(self, name: str) -> None:
        """Whoever can connect to this listener is that account (RFC 9051 §7.1.4)."""
        try:
            account = await self._service.authenticator.directory.find(name)
        except SourceError as error:
            logger.warning("session %s: account %s: %s", self.session_id, name, error)
            account = None
        if account is None or account.disabled:
            self.machine.stop(b"* BYE [UNAVAILABLE] No such account now\r\n")
        else:
            self.sign_in(Identity(account, "PREAUTH", account.name))
            self._greet(b"PREAUTH")

    def know_peer(self, *, tls: bool) -> None:
        """Who is asking, over what, and how it may log in: again after a TLS handshake."""
        super().know_peer(tls=tls)
        service = self._service
        self.passwords = service.authenticator.allows(self.peer)
        self.mechanisms = service.authenticator.mechanisms(self.peer, service.auth_mechanisms)

    @property
    def may_start_tls(self) -> bool:
        return self._service.starttls and not self.peer.tls

    def tls_started(self) -> None:
        self.machine.tls_started()
        self.know_peer(tls=True)

    def last_words(self, reason: str) -> bytes:
        return _LAST_WORDS[reason]

    def idle_s(self) -> float:
        config = self._service.config
        if self.idling and config.still_here_s:
            return config.still_here_s
        return config.idle_s if self.account is not None else config.login_s

    def on_deadline(self) -> None:
        if self._writable and not self.machine.closing:
            if self.idling and time.monotonic() < self.idle_since + self._service.config.idle_s:
                self.untagged(b"OK Still here")
                self.flush()
                return
            if self._waiting:
                self._tell_progress()
                return
        super().on_deadline()

    def flush(self) -> None:
        LoginSession.flush(self)
        for upload in self.uploads:
            if upload.waiting > WAITING_OCTETS:
                self._connection.pause_reading()  # upload_written() comes
        if self._waiting and self._writable and not self.machine.closing and self.command is not None:
            self._connection.set_deadline(PROGRESS_S)
        if self.machine.interrupted and not self._waiting and self._writable and not self.machine.closing:
            self._connection.pause_reading()
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Others had their turn."""
        self.machine.go_on()
        if not self._waiting and not self._connection.closed:
            self.pump()

    def _tell_progress(self) -> None:
        """A command takes long: the client need not think that we are gone (RFC 9585 §4)."""
        if self.command is not None and not self.mid_response:
            self.untagged(b"OK [" + in_progress(self.command.tag, *self.progress) + b"] Still working")
        self.flush()

    def on_write_ready(self, ready: bool) -> None:
        super().on_write_ready(ready)
        if ready and self.notify is not None:
            self.notify.deliver()
            self.mailbox_changed()

    def closed(self) -> None:
        self.cancel_login()
        self.leave_mailbox()
        self.leave_notify()
        self.discard_uploads()

    # -- a command ---------------------------------------------------------------------------------------------------

    def on_event(self, kind: int, a: Any, b: Any) -> None:
        if kind != COMMAND:
            _EVENTS[kind](self, a, b)
            return
        self.command = a
        grant = self.selected.grant if self.selected is not None else None
        if grant is not None:
            self.poll()
            if grant.is_stale:
                self.later(self._check_first(grant, a))
                return
        self._dispatch(a)

    async def _check_first(self, grant: Grant, command: ImapCommand) -> None:
        await grant.check()
        if not self.machine.closing:
            self._dispatch(command)

    def _dispatch(self, command: ImapCommand) -> None:
        handler = HANDLERS.get(command.name)
        if handler is None:
            self._fail(Bad("Unknown command"), None)
            return
        function, states, _, by_sequence, indexed, _ = handler
        selected = self.selected
        if not states & (IN_SELECTED if selected is not None else self.state):
            self._fail(Bad(_NOT_NOW[self.state]), handler)
        elif by_sequence and b"UIDONLY" in self.enabled:  # RFC 9586 §3
            self._fail(Bad("Use UIDs", b"UIDREQUIRED"), handler)
        elif indexed and selected is not None and not selected.view.is_loaded:
            self.later(self._load_first(handler, command))
        else:
            try:
                outcome = function(self, command)
            except (ImapSyntaxError, Bad, No, StoreError) as error:
                self._fail(error, handler)
                return
            if outcome is None or isinstance(outcome, Completed):
                if outcome is not PENDING:
                    self._complete(handler, b"OK", outcome)
            else:
                self.begin(self._await(handler, outcome))

    async def _load_first(self, handler: Handler, command: ImapCommand) -> None:
        assert self.selected is not None
        try:
            await self.selected.view.watch.load()
            outcome = handler.function(self, command)
        except (ImapSyntaxError, Bad, No, StoreError) as error:
            await self._complete_later(handler, *_answer(error))
            return
        if isinstance(outcome, Coroutine):
            await self._await(handler, outcome)
        elif outcome is not PENDING:
            await self._complete_later(handler, b"OK", outcome)

    async def _await(self, handler: Handler, work: Coroutine[Any, Any, Outcome]) -> None:
        try:
            outcome = await work
        except (ImapSyntaxError, Bad, No, StoreError) as error:
            await self._complete_later(handler, *_answer(error))
        else:
            if outcome is not PENDING:
                await self._complete_later(handler, b"OK", outcome)

    def answer_later(self) -> Callable[[Outcome | Exception], None]:
        """For a function that returns PENDING: its command is answered by calling that, once, on the loop.

        Where one thing is asked of the store this is cheaper than a coroutine, which takes three turns of the loop.
        """
        assert self.command is not None
        handler = HANDLERS[self.command.name]
        self.wait()

        def answer(outcome: Outcome | Exception) -> None:
            if self._connection.closed:
                return
            self._waiting = False
            try:
                if isinstance(outcome, Exception):
                    self._fail(outcome, handler)
                else:
                    self._complete(handler, b"OK", outcome)
            except Exception:
                logger.exception("session %s: unexpected error", self.session_id)
                self.end("error")
            if not self._waiting:
                self.resume()

        return answer

    def go_on(self, work: Coroutine[Any, Any, Outcome]) -> None:
        """Answer the command by that, though answer_later() was called."""
        assert self.command is not None
        self.later(self._await(HANDLERS[self.command.name], work))

    def _fail(self, error: Exception, handler: Handler | None) -> None:
        self._complete(handler, *_answer(error))

    def _complete(self, handler: Handler | None, status: bytes, outcome: Outcome) -> None:
        selected = self.selected
        if selected is not None:
            self._service.watches.poll()
            if selected.view.watch.is_stale or selected.contexts:
                self.later(self._complete_later(handler, status, outcome))
                return
            if not selected.view.is_told:
                updates.report(self, handler is None or handler.expunges)
        self.complete(status, outcome)

    async def _complete_later(self, handler: Handler | None, status: bytes, outcome: Outcome) -> None:
        await self.catch_up(handler is None or handler.expunges)
        self.complete(status, outcome)

    def complete(self, status: bytes, outcome: Outcome) -> None:
        """The tagged line; None: "OK completed"."""
        if self.machine.closing:
            return
        text, code = outcome or _DONE
        if self.limited:
            limited, self.limited = self.limited, b""
            if status == b"OK" and not code:
                code = limited
            elif status == b"OK" or code == b"EXPUNGEISSUED":  # RFC 9738 §3.1: there is one code in a line
                self.untagged(b"NO [" + limited + b"] Only the newest of the messages")
        self.command = None
        self.progress = _NO_PROGRESS
        if not text and not code and status == b"OK":
            self.machine.completed()
        else:
            self.machine.complete(status, text or "Completed", code)
        if self.notify is not None:
            self.notify.after_command()

    # -- IDLE --------------------------------------------------------------------------------------------------------

    def mailbox_changed(self) -> None:
        """The worker learned something about the selected mailbox while the session waits for that."""
        if self.selected is None or self._connection.closed:
            return
        if self.notify is None:
            updates.report(self)
        elif self.is_free:
            updates.report(self, self.idling or not self.notify.request.delayed)
            self.notify.fetch_new()
        self.flush()
        if self.selected is not None and self.selected.contexts:
            afterwards(self._tell_contexts())

    async def _tell_contexts(self) -> None:
        await tell_contexts(self)
        if not self._connection.closed:
            self.flush()

    def _on_auth_response(self, response: bytes, _: object) -> None:
        self.respond_to_challenge(response)

    def _on_auth_cancelled(self, _a: object, _b: object) -> None:
        self.cancel_login()

    def _on_idle_done(self, _a: object, _b: object) -> None:
        self.idling = False
        if self.selected is not None and self.notify is None:
            self.selected.view.watch.tell_no_more(self)
        self._complete(None, b"OK", None)

    # -- literals that are not kept in memory ------------------------------------------------------------------------

    def _on_literal(self, command: ImapCommand, size: int) -> None:
        handler = HANDLERS.get(command.name)
        if handler is None or handler.literal is None:
            self.machine.refuse_literal(b"BAD", b"", "Unknown command")
        else:
            handler.literal(self, command, size)

    def _on_abandoned(self, _a: object, _b: object) -> None:
        self.discard_uploads()

    def discard_uploads(self) -> None:
        """The command is done, or refused: its literals are stored, or not wanted."""
        for upload in self.uploads:
            upload.discard()
        self.uploads.clear()

    def upload_written(self) -> None:
        """The disk has taken some of a literal: the client may be read on."""
        if not self._connection.closed and not self._waiting:
            self.flush()


_DONE = Completed()
_NO_PROGRESS = (0, 0)

_LAST_WORDS = {
    "timeout": b"* BYE [UNAVAILABLE] Idle for too long\r\n",
    "shutdown": b"* BYE [UNAVAILABLE] Shutting down; connect again\r\n",
    "error": b"* BYE [SERVERBUG] Local error; connect again\r\n",
    "rights": b"* BYE [NOPERM] You may not read the mailbox any more\r\n",
    "lost": b"* BYE [UNAVAILABLE] The mailbox changed too much; connect again\r\n",
}
_NOT_NOW = {
    IN_NOT_AUTHENTICATED: "Log in first",
    IN_AUTHENTICATED: "Not in this state",
    IN_SELECTED: "Not in this state",
}


async def _claim_recent(watch: Watch) -> None:
    """What this session was told of as new is new to no other (RFC 3501 §2.3.2)."""
    try:
        await watch.account.claim_recent(watch.mailbox.id)
        watch.claimed()
    except StoreError as error:
        logger.warning("mailbox %r of %s: %s", watch.mailbox.name, watch.account.name, error)


def _quota(account: Owner | None) -> Quota:
    return Quota() if account is None else Quota(account.quota_octets or 0, account.quota_messages or 0)


def _answer(error: Exception) -> tuple[bytes, Outcome]:
    if isinstance(error, StoreError):
        error = no_of(error)
    code: bytes = getattr(error, "code", b"")
    return (b"NO" if isinstance(error, No) else b"BAD"), Completed(str(error), code)


_EVENTS: dict[int, Callable[[ImapSession, Any, Any], None]] = {
    machine.LITERAL: ImapSession._on_literal,
    machine.AUTH_RESPONSE: ImapSession._on_auth_response,
    machine.AUTH_CANCELLED: ImapSession._on_auth_cancelled,
    machine.IDLE_DONE: ImapSession._on_idle_done,
    machine.ABANDONED: ImapSession._on_abandoned,
}

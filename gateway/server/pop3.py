"""One POP3 session: event → login, maildrop, store → response.

Owns      Pop3Service (what the sessions of one listener share) and Pop3Session
Flow      see session.py; a login locks the maildrop, QUIT removes what was deleted, both in the store's threads
Limits    the maildrop's own (maildrop.py), one session an account; of a large message a slice at a time
Errors    those of the store become [SYS/TEMP] or [SYS/PERM] (RFC 3206); the session goes on
Blocking  never
Security  deletions happen at QUIT alone; a session that breaks removes nothing
Standards RFC 1939, RFC 2449, RFC 2595, RFC 3206, RFC 5034, RFC 6856, RFC 6858
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from gateway.accounts.model import Identity, Refusal
from gateway.mail.surrogate import surrogate_header
from gateway.mail.unique_id import UniqueIds
from gateway.protocol import pop3
from gateway.server.login import LoginService, LoginSession
from gateway.server.maildrop import Maildrop, first_lines
from gateway.server.session import FLUSH_OCTETS, afterwards
from gateway.store.errors import StoreBusy, StoreError, TooSoon
from gateway.store.large import LargeContent
from gateway.store.maildrop import MaildropLock
from gateway.store.model import Content

logger = logging.getLogger(__name__)

# RFC 1939 §3: at least ten minutes
AUTHORIZATION_IDLE_S = 600.0
TRANSACTION_IDLE_S = 600.0


class PopService(LoginService, kw_only=True):
    """What POP3 and POP2 sessions share."""

    unique_ids: UniqueIds
    login_delay_s: float
    marks_seen: bool


class Pop3Service(PopService, kw_only=True):
    """Given to each session of the listener."""

    settings: pop3.Settings
    apop: bool


class PopSession(LoginSession):
    """The maildrop's part of a session."""

    __slots__ = ("_lock", "_maildrop", "retrieved")

    _service: PopService

    def __init__(self, service: PopService, client: str = "", client_ip: str = "") -> None:
        super().__init__(service, client, client_ip)
        self._lock: MaildropLock | None = None
        self._maildrop: Maildrop = None  # type: ignore[assignment]  # set by the login
        self.retrieved = 0

    def idle_s(self) -> float:
        return TRANSACTION_IDLE_S if self.machine.authenticated else AUTHORIZATION_IDLE_S

    def logged_in(self, identity: Identity) -> None:
        self.later(self._open_maildrop(identity))

    def refuse(self, error: StoreError) -> None:
        """Answer the event that waits."""
        raise AssertionError("a protocol's business")

    async def opened(self) -> None:
        """Answer the login: the maildrop is locked."""
        raise AssertionError("a protocol's business")

    async def _open_maildrop(self, identity: Identity) -> None:
        service = self._service
        name = identity.account.name
        account = service.store.account(name)
        try:
            self._lock, inbox = await account.lock_maildrop(service.login_delay_s)
        except StoreError as error:
            self.refuse(error)
            return
        self.account_name = name
        self._maildrop = Maildrop(account, inbox, service.unique_ids)
        await self.opened()

    async def remove(self, indices: Sequence[int]) -> None:
        """Gone when this returns; raises StoreError."""
        await self._maildrop.remove(indices, self._trace)

    def _trace(self, **fields: Any) -> None:
        service = self._service
        service.log.event("fetched", session=self.session_id, service=service.name, **fields)

    def count(self, octets: int) -> None:
        """The client has a message."""
        self.retrieved += 1
        metrics = self._service.metrics
        metrics.retrieved_total += 1
        metrics.retrieved_octets_total += octets

    async def stream(self, large: LargeContent, lines: int | None) -> None:
        """Answer RETRIEVE with the body, or so many lines of it, as fast as the client reads; then it is closed."""
        account = self._maildrop.account
        at = len(large.header)
        try:
            while at < large.size and lines != 0:
                end = min(at + FLUSH_OCTETS, large.size)
                piece = await account.with_large(large, partial(LargeContent.read, start=at, end=end))
                at = end
                if lines is not None:
                    piece, lines = first_lines(piece, lines)
                self.machine.content([piece])
                await self.write_out()
        except StoreError as error:  # half of it is out: only the end of the connection says so
            logger.error("session %s: %s", self.session_id, error)
            self._reason = str(error)
            self.machine.stop()
            return
        finally:
            account.close_large(large)
        self.machine.end_content()

    def closed(self) -> None:
        self.cancel_login()
        if self._maildrop is not None and self._service.marks_seen:
            afterwards(self._mark_seen())
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def _mark_seen(self) -> None:
        try:
            await self._maildrop.mark_seen(self._trace)
        except StoreError as error:
            logger.warning("session %s: \\Seen was not set: %s", self.session_id, error)


class Pop3Session(PopSession):
    """Drives one Pop3ServerMachine over one Connection."""

    __slots__ = ()

    _service: Pop3Service
    machine: pop3.Pop3ServerMachine

    def open(self, *, tls: bool, refusal: str) -> None:
        service = self._service
        timestamp = ""
        if service.apop and service.authenticator.keeps_secrets():  # RFC 1939 §7: different each time
            timestamp = f"<{secrets.token_hex(8)}.{time.time_ns()}@{service.hostname}>"
        self.machine = pop3.Pop3ServerMachine(service.settings, tls=tls, timestamp=timestamp)
        self._offer(tls)
        self.machine.greet(f"[SYS/TEMP] {refusal}" if refusal else "")

    def _offer(self, tls: bool) -> None:
        """What this client may log in with, now."""
        self.know_peer(tls=tls)
        authenticator, machine = self._service.authenticator, self.machine
        machine.passwords = authenticator.allows(self.peer)
        machine.mechanisms = authenticator.mechanisms(self.peer, self._service.auth_mechanisms)

    def tls_started(self) -> None:
        self.machine.tls_started()
        self._offer(True)

    def last_words(self, reason: str) -> bytes:
        return _LAST_WORDS[reason]

    def on_event(self, kind: int, a: Any, b: Any) -> None:
        if kind == pop3.RETRIEVE:
            self._retrieve_now(a, b)
        else:
            _HANDLERS[kind](self, a, b)

    # -- AUTHORIZATION -----------------------------------------------------------------------------------------------

    def _on_login(self, user: str, password: str) -> None:
        self.check_password(user, password)

    def _on_apop(self, user: str, digest: str) -> None:
        check, timestamp = self._service.authenticator.check_apop, self.machine.timestamp
        self.authenticate(lambda done: check(self.peer, user, timestamp, digest, done))

    def _on_auth(self, mechanism: str, initial: bytes | None) -> None:
        self.exchange(mechanism, initial)

    def _on_auth_response(self, response: bytes, _b: object) -> None:
        self.respond_to_challenge(response)

    def _on_auth_cancelled(self, _a: object, _b: object) -> None:
        self.cancel_login()

    def refuse_login(self, refusal: Refusal) -> None:
        code = f"[{refusal.pop3}] " if refusal.pop3 else ""
        self.machine.refuse(code + refusal.text, error=not refusal.is_temporary)

    async def opened(self) -> None:
        inbox = self._maildrop.mailbox
        self.machine.logged_in(inbox.messages, inbox.octets)

    def _on_stls(self, _a: object, _b: object) -> None:
        if self._service.tls is None or self._service.tls.server is None:
            self.machine.refuse("[SYS/TEMP] TLS is not available now")
            return
        self.machine.accept_tls()
        self.start_tls()

    # -- TRANSACTION -------------------------------------------------------------------------------------------------

    def refuse(self, error: StoreError) -> None:
        if isinstance(error, StoreBusy):
            code = "IN-USE"
        elif isinstance(error, TooSoon):
            code = "LOGIN-DELAY"
        else:
            code = "SYS/TEMP" if error.transient else "SYS/PERM"
        self.machine.refuse(f"[{code}] {error}", error=False)

    def _on_table(self, _a: object, _b: object) -> None:
        self.later(self._load())

    async def _load(self) -> None:
        maildrop = self._maildrop
        try:
            await maildrop.load()
        except StoreError as error:
            self.refuse(error)
            return
        event = self.machine.table(maildrop.sizes, maildrop.unique_id)
        if event is not None:  # the command that asked was RETR or TOP
            await self._retrieve(*cast("tuple[int, int | None]", event[1:]))

    def _retrieve_now(self, index: int, lines: int | None) -> None:
        content = self._maildrop.ready(index) if lines is None else None
        if content is None:
            self.later(self._retrieve(index, lines))
        else:
            self._send(index, content)

    async def _retrieve(self, index: int, lines: int | None) -> None:
        maildrop = self._maildrop
        try:
            large = await maildrop.open_large(index) if lines != 0 else None
            if large is not None:
                await self._send_large(index, lines, large)
            elif lines is None:
                self._send(index, await maildrop.fetch(index))
            else:
                content = await maildrop.peek(index, header_only=lines == 0)
                self._send_top(index, content, lines)
        except StoreError as error:
            self.refuse(error)

    def _send(self, index: int, content: Content | StoreError) -> None:
        if isinstance(content, StoreError):
            self.refuse(content)
            return
        self.count(len(content.header) + len(content.body))
        self._begin(index, content.header, content.body)
        self.machine.end_content()

    def _send_top(self, index: int, content: Content | StoreError, lines: int) -> None:
        if isinstance(content, StoreError):
            self.refuse(content)
            return
        self._begin(index, content.header, first_lines(content.body, lines)[0])
        self.machine.end_content()

    async def _send_large(self, index: int, lines: int | None, large: LargeContent) -> None:
        """Its body is never in memory whole."""
        if lines is None:
            self._maildrop.note_fetched(index)
            self.count(large.size)
        self._begin(index, large.header, b"")
        await self.stream(large, lines)

    def _begin(self, index: int, header: bytes, body: bytes) -> None:
        """The first line, the header section, and what is there of the body."""
        machine = self.machine
        if not machine.utf8 and not header.isascii():
            header = surrogate_header(header)  # RFC 6856 §2.1
        machine.begin_content(self._maildrop.sizes[index])
        machine.content([header, body])

    # -- UPDATE ------------------------------------------------------------------------------------------------------

    def _on_update(self, indices: Sequence[int], _b: object) -> None:
        if indices:
            self.later(self._update(indices))
        else:
            self.machine.updated("Bye")

    async def _update(self, indices: Sequence[int]) -> None:
        left = len(self._maildrop.sizes) - len(indices)
        try:
            await self.remove(indices)
        except StoreError as error:
            code = "SYS/TEMP" if error.transient else "SYS/PERM"
            self.machine.update_failed(f"[{code}] Not all of them were deleted: {error}")
        else:
            self.machine.updated(f"Bye, {left} messages left")

    def _on_quit(self, _a: object, _b: object) -> None:
        pass


_LAST_WORDS = {
    "timeout": b"-ERR [SYS/TEMP] Idle for too long\r\n",
    "shutdown": b"-ERR [SYS/TEMP] Shutting down; try again\r\n",
    "error": b"-ERR [SYS/TEMP] Local error; try again later\r\n",
}

_HANDLERS: list[Callable[[Pop3Session, Any, Any], None]] = [
    Pop3Session._on_login,
    Pop3Session._on_apop,
    Pop3Session._on_auth,
    Pop3Session._on_auth_response,
    Pop3Session._on_auth_cancelled,
    Pop3Session._on_stls,
    Pop3Session._on_table,
    Pop3Session._retrieve_now,
    Pop3Session._on_update,
    Pop3Session._on_quit,
]

"""One POP2 session: event → login, folder, store → response.

Owns      Pop2Session
Flow      see session.py; the folder that is open is a maildrop; FOLD and QUIT leave it, and remove what ACKD marked
Limits    the maildrop's own (maildrop.py), one POP session an account
Errors    every error ends the session, as RFC 937 has it
Blocking  never
Security  a session that breaks removes nothing
Standards RFC 937
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.accounts.model import Refusal
from gateway.protocol import pop2
from gateway.server.maildrop import Maildrop
from gateway.server.pop3 import PopSession
from gateway.store.errors import NoSuchMailbox, StoreError
from gateway.store.model import Content


class Pop2Session(PopSession):
    """Drives one Pop2ServerMachine over one Connection."""

    __slots__ = ()

    machine: pop2.Pop2ServerMachine

    def open(self, *, tls: bool, refusal: str) -> None:
        self.machine = pop2.Pop2ServerMachine(self._service.hostname)
        self.know_peer(tls=tls)
        self.machine.greet(refusal)

    def last_words(self, reason: str) -> bytes:
        return _LAST_WORDS[reason]

    def on_event(self, kind: int, a: Any, b: Any) -> None:
        _HANDLERS[kind](self, a, b)

    def _on_login(self, user: str, password: str) -> None:
        self.check_password(user, password)

    def refuse_login(self, refusal: Refusal) -> None:
        self.machine.refuse(refusal.text)

    def refuse(self, error: StoreError) -> None:
        self.machine.refuse(str(error))

    async def opened(self) -> None:
        try:
            await self._maildrop.load()
        except StoreError as error:
            self.refuse(error)
        else:
            self.machine.opened(self._maildrop.sizes)

    def _on_fold(self, name: str, _b: object) -> None:
        self.later(self._fold(name))

    async def _fold(self, name: str) -> None:
        account = self._maildrop.account
        try:
            await self._leave()
            mailbox = await account.mailbox(name)
        except NoSuchMailbox:  # RFC 937: it has no messages
            self.machine.opened(())
            return
        except StoreError as error:
            self.refuse(error)
            return
        self._maildrop = Maildrop(account, mailbox, self._service.unique_ids)
        await self.opened()

    async def _leave(self) -> None:
        await self.remove(sorted(self.machine.deleted))
        if self._service.marks_seen:
            await self._mark_seen()

    def _on_retrieve(self, index: int, _b: object) -> None:
        self.later(self._retrieve(index))

    async def _retrieve(self, index: int) -> None:
        maildrop = self._maildrop
        content: Content | StoreError
        try:
            large = await maildrop.open_large(index)
            if large is not None:
                maildrop.note_fetched(index)
                self.count(large.size)
                self.machine.content([large.header])
                await self.stream(large, None)
                return
            content = maildrop.ready(index) or await maildrop.fetch(index)
        except StoreError as error:
            content = error
        if isinstance(content, StoreError):
            self.refuse(content)
            return
        self.count(maildrop.sizes[index])
        self.machine.content([content.header, content.body])
        self.machine.end_content()

    def _on_leave(self, _a: object, _b: object) -> None:
        self.later(self._quit())

    async def _quit(self) -> None:
        try:
            await self._leave()
        except StoreError as error:
            self.refuse(error)
        else:
            self.machine.left()

    def _on_quit(self, _a: object, _b: object) -> None:
        pass


_LAST_WORDS = {
    "timeout": b"- Idle for too long\r\n",
    "shutdown": b"- Shutting down; try again\r\n",
    "error": b"- Local error; try again later\r\n",
}

_HANDLERS: list[Callable[[Pop2Session, Any, Any], None]] = [
    Pop2Session._on_login,
    Pop2Session._on_fold,
    Pop2Session._on_retrieve,
    Pop2Session._on_leave,
    Pop2Session._on_quit,
]

"""MOVE to another user's mailbox, when the client goes away in the middle: in one mailbox or in both, never in none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from imap.rig import MESSAGE, ImapGateway

from gateway.store.store import Account


def test_a_client_that_leaves_while_its_mail_moves(
    gateway: ImapGateway, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"other-{account}"
    gateway.add_account(other)
    with gateway.login(other) as imap:
        imap.ok(f"SETACL Archive {account} lri")
    gateway.deliver(account, MESSAGE, MESSAGE)
    done: list[asyncio.Future[Any]] = []
    expunge = Account.expunge

    async def leave(self: Account, *how: Any, **more: Any) -> Any:
        """The disk is slow, and the client loses its patience."""
        done.append(asyncio.ensure_future(expunge(self, *how, **more)))
        if self.name == account:
            for connection in list(gateway.worker.sweep.connections):
                connection.abort()
            await asyncio.sleep(3600)
        return await asyncio.shield(done[-1])

    monkeypatch.setattr(Account, "expunge", leave)
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        imap.begin(f'MOVE 1:* "Other Users/{other}/Archive"')
        with pytest.raises((EOFError, ConnectionError)):
            imap.response()
    monkeypatch.undo()
    with gateway.login(account) as imap:
        there = imap.ok("STATUS INBOX (MESSAGES)")
    assert gateway.call(lambda: all(one.done() for one in done))
    with gateway.login(other) as imap:
        moved = imap.ok("STATUS Archive (MESSAGES)")
    assert b"MESSAGES 2" in there[0] + moved[0]

"""What a submission session does beyond SMTP: who its client is, whose mail it may send, what a message lacks.

Owns      Rules (a listener's), Submission (a session's)
Flow      session's AUTH events → Authenticator → challenge() or 235; MAIL → check_sender(); end of data →
          missing_fields() in front of the message
Limits    the first 64 KiB of a header section are looked at for what it lacks
Errors    what the authenticator refuses with; a sender that cannot be looked up is transient
Blocking  never
Security  the reverse-path must be an address of the account (unless submission.any_sender): nobody sends in another's
          name.  The From field is not compared: RFC 6409 leaves it to the message
Standards RFC 4954 (AUTH), RFC 6409 §4.3 (authentication), §6.1 (who may send), §8.1 §8.2 (Message-ID, Date)
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING

import msgspec

from gateway.accounts.authenticator import Authenticator, Login, Peer
from gateway.accounts.model import Deliveries, Identity, Refusal, Resolution, Unavailable
from gateway.mail import replies
from gateway.mail.reply import Reply
from gateway.net.tls import TlsContexts
from gateway.server.login import peer_of_session
from gateway.server.service import Resolve

if TYPE_CHECKING:
    from gateway.net.connection import Connection

_DATE = re.compile(rb"(?:^|\n)date[ \t]*:", re.IGNORECASE)


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Given to each session of a submission listener."""

    authenticator: Authenticator
    mechanisms: tuple[str, ...]  # the listener's own; empty: auth.mechanisms
    resolve: Resolve
    any_sender: bool
    add_fields: bool
    hostname: str
    contexts: TlsContexts | None


class Submission:
    """One session's."""

    def __init__(
        self,
        rules: Rules,
        *,
        session: str,
        on_challenge: Callable[[bytes], None],
        on_done: Callable[[Identity | Refusal], None],
    ) -> None:
        """session: its id.  on_challenge, on_done: as for Authenticator.start()."""
        self._rules = rules
        self._session = session
        self._on_challenge = on_challenge
        self._on_done = on_done
        self._login: Login | None = None
        self._peer: Peer = None  # type: ignore[assignment]  # set by offer()
        self.identity: Identity | None = None

    # -- who it is -----------------------------------------------------------------------------------------------------

    def offer(self, connection: Connection, client: str, client_ip: str) -> tuple[str, ...]:
        """Mechanisms for the client as it is connected now; a login before that is forgotten."""
        self.cancel()
        self.identity = None
        self._peer = peer_of_session(
            connection,
            self._rules.contexts,
            session=self._session,
            client=client,
            client_ip=client_ip,
            service="submission",
            tls=connection.tls is not None,
        )
        return self._rules.authenticator.mechanisms(self._peer, self._rules.mechanisms)

    def start(self, mechanism: str, initial: bytes | None) -> None:
        """AUTH; ends in on_challenge or on_done, maybe before this returns."""
        self._login = self._rules.authenticator.start(
            mechanism, self._peer, self._on_challenge, self._ended, self._rules.mechanisms
        )
        self._login.respond(initial)

    def respond(self, response: bytes) -> None:
        """The client's answer to a challenge."""
        assert self._login is not None
        self._login.respond(response)

    def cancel(self) -> None:
        """The client gave up, or is gone."""
        if self._login is not None:
            self._login.cancel()
            self._login = None

    def _ended(self, outcome: Identity | Refusal) -> None:
        self._login = None
        if isinstance(outcome, Identity):
            self.identity = outcome
        self._on_done(outcome)

    # -- what it sends -------------------------------------------------------------------------------------------------

    def check_sender(self, reverse_path: str, done: Callable[[Reply | None], None]) -> None:
        """done(None or why not), before this returns unless a source of accounts must be asked."""
        identity = self.identity
        assert identity is not None
        # The null reverse-path is for notifications, which a client may send (RFC 8098 §3).
        if self._rules.any_sender or not reverse_path or reverse_path == identity.account.name:
            done(None)
            return

        def judge(found: Resolution) -> None:
            if isinstance(found, Unavailable):
                done(replies.MAILBOX_UNVERIFIED)
            elif isinstance(found, Deliveries) and any(
                delivery.account.name == identity.account.name for delivery in found.local
            ):
                done(None)
            else:
                done(replies.SENDER_NOT_YOURS)

        self._rules.resolve(reverse_path, judge)

    def missing_fields(self, header: bytes, message_id: str) -> tuple[bytes, str]:
        """Fields to put in front of the message, and its Message-ID.

        header: its header section, or the beginning of a long one; message_id: "" when it has none.
        """
        fields = b""
        if not self._rules.add_fields:
            return fields, message_id
        if not _DATE.search(header):
            fields += f"Date: {formatdate(time.time())}\r\n".encode()  # RFC 6409 §8.2
        if not message_id:
            message_id = f"<{secrets.token_hex(16)}@{self._rules.hostname}>"
            fields += f"Message-ID: {message_id}\r\n".encode()  # RFC 6409 §8.1
        return fields, message_id

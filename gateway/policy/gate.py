"""The door: how many sessions at once, how many for one client, and when nobody is let in.

Owns      Gate: counts of open sessions, in all and by client address
Limits    sessions_max and sessions_per_client_max of [limits]; both for one worker
Errors    none: None or the Reply that refuses
Security  a refused client costs one reply; its address is forgotten with its last session
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.mail import replies
from gateway.mail.reply import Reply


class Gate:
    """Counts the sessions of a worker."""

    def __init__(
        self,
        *,
        sessions_max: int,
        sessions_per_client_max: int,
        overloaded: Callable[[bool], Reply | None],
    ) -> None:
        """overloaded: given whether the client may relay, the 421 for it."""
        self.sessions_max = sessions_max
        self.sessions_per_client_max = sessions_per_client_max
        self.sessions = 0
        self.draining = False
        self._overloaded = overloaded
        self._by_client: dict[str, int] = {}

    def enter(self, client_ip: str, *, unlimited: bool) -> Reply | None:
        """Count one more session of the client, or say why not.

        unlimited: the client may relay, so only the total counts for it, and overload refuses it last.
        Every enter() that gave None needs one leave().
        """
        if self.draining:
            return replies.SHUTTING_DOWN
        if self.sessions >= self.sessions_max:
            return replies.TOO_MANY_SESSIONS
        refusal = self._overloaded(unlimited)
        if refusal is not None:
            return refusal
        if client_ip:  # local sockets carry no address
            open_now = self._by_client.get(client_ip, 0)
            if open_now >= self.sessions_per_client_max > 0 and not unlimited:
                return replies.TOO_MANY_FROM_CLIENT
            self._by_client[client_ip] = open_now + 1
        self.sessions += 1
        return None

    def leave(self, client_ip: str) -> None:
        self.sessions -= 1
        if client_ip:
            left = self._by_client[client_ip] - 1
            if left:
                self._by_client[client_ip] = left
            else:
                del self._by_client[client_ip]

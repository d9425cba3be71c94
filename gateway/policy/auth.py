"""Guessing passwords is slow: delays that grow with failures, by client and by account.

Owns      Throttle
Limits    failures_max entries in each table, forgotten after failures_kept_s; counts are a worker's own: sharing
          them would slow a guesser by the number of workers at most, and cost a message for each failure
Errors    none: answers are seconds, or None for "not now"
Security  see below; a burst of guesses is bounded by limits.sessions_per_client

What a failure costs, and whom:

* A *refusal* is held back: failure_delay_s, doubled with each failure of the client's address or of the account,
  whichever has more.  The next login from that address has to wait for it, so an address makes one guess in each
  delay, however many connections it opens.
* A *right password* is let in at once.  Failures from elsewhere never make it wait: what many addresses did to an
  account lengthens their refusals, nothing else.  So nobody can lock another out.
* An address that logged in to an account before waits only for its own failures at this account, not for those of
  its neighbours behind the same address.  Left is a user who comes for the first time from an address that somebody
  else is guessing from: that login waits for its turn, wait_max_s at most, and is then told to try again.
* The same wrong password again (a mail client that was not told the new one) is not counted again: it teaches a
  guesser nothing.
* A success takes back none of the failures: an attacker with an account of his own would log in between guesses.

An IPv6 client is its /64, since every host has one (RFC 6177 §2); a local socket is one client.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from gateway.config_accounts import AuthConfig

Pair = tuple[str, str]  # client, account


class _Trail(msgspec.Struct):
    """What is remembered of failures."""

    last_at: float = 0.0
    failures: int = 0
    free_at: float = 0.0  # when the next login may be looked at
    marks: tuple[bytes, ...] = ()  # of the last wrong passwords


MARKS_KEPT = 4  # an old password in a phone, another one in a laptop


class Throttle:
    """Times are time.monotonic(), given by the caller."""

    def __init__(self, config: AuthConfig) -> None:
        self.config = config
        self._clients: dict[str, _Trail] = {}
        self._accounts: dict[str, _Trail] = {}
        self._pairs: dict[Pair, _Trail] = {}
        self._known: dict[Pair, float] = {}  # when it last logged in

    def admit(self, client_ip: str, account: str, now: float) -> float | None:
        """Seconds to wait before the secret is looked at; None: refuse for the moment.

        The turn is taken by asking: the next login from there waits behind it.
        """
        client = client_of(client_ip)
        pair = (client, account)
        if self._is_known(pair, now):
            trail = _fresh(self._pairs.get(pair), now - self.config.failures_kept_s)
        else:
            trail = _fresh(self._clients.get(client), now - self.config.failures_kept_s)
        if trail is None:
            return 0.0
        turn = max(now, trail.free_at)
        if turn - now > self.config.wait_max_s:
            return None
        trail.free_at = turn + self._delay(trail.failures)
        return turn - now

    def failed(self, client_ip: str, account: str, now: float, mark: bytes = b"") -> float:
        """Count it; seconds to hold back the refusal.  mark: stands for the wrong password, b"": unknown."""
        client = client_of(client_ip)
        pair = (client, account)
        own = self._trail(self._pairs, pair, now)
        again = bool(mark) and mark in own.marks
        if mark and not again:
            own.marks = (*own.marks[-MARKS_KEPT + 1 :], mark)
        trails = [own]
        if not self._is_known(pair, now):
            trails += [
                self._trail(self._clients, client, now),
                self._trail(self._accounts, account, now),
            ]
        for trail in trails:
            trail.failures += not again
            trail.last_at = now
        delay = self._delay(max(trail.failures for trail in trails))
        for trail in trails[:2]:  # the account itself is never blocked
            trail.free_at = max(trail.free_at, now + delay)
        return delay

    def succeeded(self, client_ip: str, account: str, now: float) -> None:
        """The client is one of the account's own from here on."""
        pair = (client_of(client_ip), account)
        self._pairs.pop(pair, None)
        self._known.pop(pair, None)  # to the end of the order
        if len(self._known) >= self.config.failures_max:
            del self._known[next(iter(self._known))]
        self._known[pair] = now

    def _is_known(self, pair: Pair, now: float) -> bool:
        at = self._known.get(pair)
        return at is not None and now - at <= self.config.known_s

    def _delay(self, failures: int) -> float:
        if failures <= 0:
            return 0.0
        config = self.config
        return min(config.failure_delay_s * 2.0 ** min(failures - 1, 30), config.failure_delay_max_s)

    def _trail(self, table: dict[Any, _Trail], key: str | Pair, now: float) -> _Trail:
        trail = _fresh(table.pop(key, None), now - self.config.failures_kept_s)
        if trail is None:
            if len(table) >= self.config.failures_max:
                self._forget(table, now)
            trail = _Trail(now)
        table[key] = trail  # to the end of the order
        return trail

    def _forget(self, table: dict[Any, _Trail], now: float) -> None:
        """Room for more: all that have expired, and the tenth that failed longest ago."""
        old = now - self.config.failures_kept_s
        for key in [key for key, trail in table.items() if trail.last_at < old]:
            del table[key]
        for key in list(table)[: max(1, self.config.failures_max // 10)]:
            del table[key]

    def entries(self) -> int:
        """How many failures are remembered, for the metrics."""
        return len(self._clients) + len(self._accounts) + len(self._pairs)


def _fresh(trail: _Trail | None, since: float) -> _Trail | None:
    return trail if trail is not None and trail.last_at >= since else None


def client_of(client_ip: str) -> str:
    """What counts as one client."""
    if ":" not in client_ip:
        return client_ip or "unix"
    address = ipaddress.IPv6Address(client_ip.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(address) >> 64 << 64)}/64"

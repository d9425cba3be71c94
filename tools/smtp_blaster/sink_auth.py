"""AUTH as a sink gives it: PLAIN, LOGIN and SCRAM for the users it was told of, or for anybody.

    Owns      Accounts: who may come in, and one exchange at a time as a generator
    Errors    ValueError for a plan that cannot be meant
    Security  for tests: passwords are in memory, and offered without TLS too
    Standards RFC 4954, RFC 4616 (PLAIN), RFC 5802 and 7677 (SCRAM)

"any" has no SCRAM: there the server must prove that it knows the password, too.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Generator

ANYBODY = "any"
SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-1")

# Yields challenges, is sent the responses, returns the user, "" for nobody.
Exchange = Generator[bytes, bytes, str]


class Accounts:
    def __init__(self, accounts: tuple[str, ...]) -> None:
        """accounts: "any", or USER:PASSWORD of each."""
        self._anybody = ANYBODY in accounts
        named = [account.partition(":") for account in accounts if account != ANYBODY]
        if not all(colon and user for user, colon, _ in named):
            raise ValueError(f"auth: expected USER:PASSWORD or {ANYBODY!r}")
        self._passwords = {user: password for user, _, password in named}
        self._scram: dict[str, dict[str, tuple[bytes, bytes, bytes, int]]] = {}
        if accounts and not self._anybody:
            from scramp import ScramMechanism  # takes its time to load

            for name in SCRAM:
                make = ScramMechanism(name).make_auth_info
                self._scram[name] = {user: make(text) for user, text in self._passwords.items()}
        self.mechanisms = ["PLAIN", "LOGIN", *self._scram] if accounts else []

    def begin(self, mechanism: str, initial: bytes | None) -> Exchange:
        """initial: the response that came with the command; None without any."""
        if mechanism == "PLAIN":
            return self._plain(initial)
        return self._login(initial) if mechanism == "LOGIN" else self._prove(mechanism, initial)

    def _knows(self, user: str, password: str) -> str:
        return user if self._anybody or self._passwords.get(user) == password else ""

    def _plain(self, initial: bytes | None) -> Exchange:
        response = (yield b"") if initial is None else initial
        parts = response.decode("utf-8", "replace").split("\0")
        return self._knows(parts[1], parts[2]) if len(parts) == 3 else ""

    def _login(self, initial: bytes | None) -> Exchange:
        user = (yield b"Username:") if initial is None else initial
        password = yield b"Password:"
        return self._knows(user.decode("utf-8", "replace"), password.decode("utf-8", "replace"))

    def _prove(self, mechanism: str, initial: bytes | None) -> Exchange:
        from scramp import ScramException, ScramMechanism

        seen: list[str] = []

        def info(user: str) -> tuple[bytes, bytes, bytes, int]:
            seen.append(user)
            if user not in self._scram[mechanism]:
                raise ScramException("no such user")
            return self._scram[mechanism][user]

        server = ScramMechanism(mechanism).make_server(info)
        try:
            server.set_client_first(((yield b"") if initial is None else initial).decode())
            server.set_client_final((yield server.get_server_first().encode()).decode())
            yield server.get_server_final().encode()  # RFC 4954 §4: the client answers with nothing
        except (ScramException, UnicodeDecodeError):
            return ""
        return seen[0]


def encode(challenge: bytes) -> bytes:
    return base64.b64encode(challenge)


def decode(response: bytes) -> bytes | None:
    """None for what is not base64.  "=" is an empty initial response (RFC 4954 §4)."""
    try:
        return b"" if response == b"=" else base64.b64decode(response, validate=True)
    except binascii.Error:
        return None

"""SASL, the server side: one state machine for every mechanism and every protocol that carries it.

Owns      Exchange, MECHANISMS
Flow      Exchange(mechanism, context) → step(response) until Success or Failure.  A Pending asks something of the
          caller: answer() goes on.  The session translates a Challenge into its protocol's 334, "+ " or "+"
Limits    RESPONSE_OCTETS_MAX a response; the protocols bound the line that carries it
Errors    nothing a peer sends raises: Failure says why, for the log; the client is told only that it failed
Security  the caller decides which mechanisms are offered (see accounts.authenticator); secrets are not kept
Standards RFC 4422, RFC 4616 (PLAIN), LOGIN (draft-murchison-sasl-login), RFC 5802 and RFC 7677 (SCRAM), RFC 7628
          (OAUTHBEARER), XOAUTH2 (Google's), RFC 2195 (CRAM-MD5), RFC 4422 appendix A (EXTERNAL)
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gateway.protocol.scram import ScramError, ScramKeys, ScramServer

RESPONSE_OCTETS_MAX = 12_288  # RFC 4954 §4: what a line of base64 may carry at most, and a token needs


# -- what step() and answer() return ---------------------------------------------------------------------------------


class Challenge(msgspec.Struct, frozen=True):
    """Send it, and give the client's answer to step()."""

    data: bytes


class CheckPassword(msgspec.Struct, frozen=True):
    """Answer with True or False."""

    user: str
    password: str


class FindKeys(msgspec.Struct, frozen=True):
    """Answer with ScramKeys: for unknown users with such that nobody's proof fits."""

    user: str
    kind: str  # "SHA-256", "SHA-1"


class FindSecret(msgspec.Struct, frozen=True):
    """Answer with the user's password, or None when it is not kept: the mechanism cannot work then."""

    user: str


class CheckToken(msgspec.Struct, frozen=True):
    """Answer with the name of the account the token was given to, or None when it is not valid."""

    user: str  # whom the client says it is for; "": it leaves that to the token
    token: str


Question = CheckPassword | FindKeys | FindSecret | CheckToken


class Pending(msgspec.Struct, frozen=True):
    """Nothing to send: answer() the question."""

    question: Question


class Success(msgspec.Struct, frozen=True):
    """The client is authcid and wants to act as authzid ("" for itself).  Whether it may is for the caller."""

    authcid: str
    authzid: str


class Failure(msgspec.Struct, frozen=True):
    """The exchange is over.  malformed: not a wrong secret, but no message of this mechanism."""

    reason: str
    malformed: bool = False
    user: str = ""  # whose secret it would have been


Outcome = Challenge | Pending | Success | Failure


class Context(msgspec.Struct, frozen=True):
    """What the connection knows."""

    hostname: str = "localhost"
    nonce: str = ""  # fresh random for each exchange: printable, without comma, 128 bits at least
    bindings: Mapping[str, bytes] = {}  # channel bindings of this TLS session by name (RFC 5929, RFC 9266)
    plus_offered: bool = False  # a -PLUS mechanism was offered to this client
    certificate_names: tuple[str, ...] = ()  # whose certificate the client showed, verified by TLS
    oauth_error: bytes = b"{}"  # JSON for a client whose token failed (RFC 7628 §3.2.2)


class Exchange:
    """One authentication.  step(None) first when the client sent no initial response."""

    __slots__ = ("_context", "_scram", "_step", "_user", "mechanism")

    def __init__(self, mechanism: str, context: Context) -> None:
        """mechanism: a key of MECHANISMS."""
        self.mechanism = mechanism
        self._context = context
        self._step: Callable[[Exchange, Any], Outcome] = MECHANISMS[mechanism]
        self._scram: ScramServer | None = None
        self._user = ""

    def step(self, response: bytes | None) -> Outcome:
        """The client's response, decoded from base64."""
        if response is not None and len(response) > RESPONSE_OCTETS_MAX:
            return self._malformed("response too long")
        return self._step(self, response)

    def answer(self, answer: bool | str | ScramKeys | None) -> Outcome:
        """What the caller found out; see the question's class."""
        return self._step(self, answer)

    def _then(self, step: Callable[[Exchange, Any], Outcome]) -> None:
        self._step = step

    def _malformed(self, reason: str) -> Failure:
        return Failure(reason, malformed=True, user=self._user)

    def _failed(self, reason: str) -> Failure:
        return Failure(reason, user=self._user)

    # -- PLAIN -------------------------------------------------------------------------------------------------------

    def _plain(self, response: bytes | None) -> Outcome:
        if response is None:
            return Challenge(b"")
        parts = response.split(b"\0")
        if len(parts) != 3:  # RFC 4616 §2: [authzid] NUL authcid NUL passwd
            return self._malformed("PLAIN needs three parts")
        try:
            authzid, user, password = (part.decode() for part in parts)
        except UnicodeDecodeError:
            return self._malformed("not UTF-8")
        return self._ask_password(user, password, authzid)

    def _ask_password(self, user: str, password: str, authzid: str = "") -> Outcome:
        self._user = user
        if not user or not password:
            return self._malformed("user or password is empty")

        def judged(_exchange: Exchange, right: bool) -> Outcome:
            return Success(user, authzid) if right else self._failed("wrong password")

        self._then(judged)
        return Pending(CheckPassword(user, password))

    # -- LOGIN -------------------------------------------------------------------------------------------------------

    def _login(self, response: bytes | None) -> Outcome:
        if response is None:
            return Challenge(b"Username:")
        try:
            self._user = response.decode()
        except UnicodeDecodeError:
            return self._malformed("not UTF-8")
        self._then(Exchange._login_password)
        return Challenge(b"Password:")

    def _login_password(self, response: bytes) -> Outcome:
        try:
            return self._ask_password(self._user, response.decode())
        except UnicodeDecodeError:
            return self._malformed("not UTF-8")

    # -- SCRAM -------------------------------------------------------------------------------------------------------

    def _scram_first(self, response: bytes | None) -> Outcome:
        if response is None:
            return Challenge(b"")
        context, name = self._context, self.mechanism.removeprefix("SCRAM-")
        kind = name.removesuffix("-PLUS")
        scram = ScramServer(
            kind,
            plus=kind != name,
            bindings=context.bindings,
            plus_offered=context.plus_offered,
            nonce=context.nonce,
        )
        try:
            self._user, authzid = scram.client_first(response)
        except ScramError as error:
            return self._malformed(str(error))
        if not self._user:
            return self._malformed("user is empty")

        def prove(_exchange: Exchange, message: bytes) -> Outcome:
            try:
                final = scram.client_final(message)
            except ScramError as error:
                return self._failed(str(error))
            self._then(confirmed)
            return Challenge(final)  # the client verifies us, and answers nothing

        def confirmed(_exchange: Exchange, _nothing: bytes) -> Outcome:
            return Success(self._user, authzid)

        def found(_exchange: Exchange, keys: ScramKeys) -> Outcome:
            self._then(prove)
            return Challenge(scram.server_first(keys))

        self._then(found)
        return Pending(FindKeys(self._user, kind))

    # -- OAUTHBEARER, XOAUTH2 ----------------------------------------------------------------------------------------

    def _oauth(self, response: bytes | None) -> Outcome:
        if response is None:
            return Challenge(b"")
        try:
            header, *fields = response.decode().split("\x01")
        except UnicodeDecodeError:
            return self._malformed("not UTF-8")
        authzid = ""
        if self.mechanism == "XOAUTH2":  # user=…^Aauth=Bearer …^A^A
            fields.insert(0, header)
        else:  # RFC 7628 §3.1: gs2-header ^A key=value ^A … ^A
            gs2 = header.split(",")
            if len(gs2) != 3 or gs2[0] not in ("n", "y") or gs2[2]:
                return self._malformed("no gs2-header")
            authzid = gs2[1].removeprefix("a=").replace("=2C", ",").replace("=3D", "=")
        values = dict(field.partition("=")[::2] for field in fields if field)
        scheme, _, token = values.get("auth", "").partition(" ")
        token = token.strip()
        user = values.get("user", authzid)
        self._user = user
        if scheme.lower() != "bearer" or not token or not token.isascii() or not token.isprintable():
            return self._malformed("no bearer token")

        def judged(_exchange: Exchange, owner: str | None) -> Outcome:
            if owner is not None:
                return Success(owner, user)
            # RFC 7628 §3.2.2: the error is a challenge, the client answers ^A, and only then the exchange fails.
            self._then(lambda _e, _r: self._failed("token not valid"))
            return Challenge(self._context.oauth_error)

        self._then(judged)
        return Pending(CheckToken(user, token))

    # -- CRAM-MD5 ----------------------------------------------------------------------------------------------------

    def _cram_md5(self, _response: bytes | None) -> Outcome:
        challenge = f"<{self._context.nonce}@{self._context.hostname}>".encode()  # RFC 2195 §2

        def judge(_exchange: Exchange, response: bytes) -> Outcome:
            try:
                self._user, _, digest = response.decode().rpartition(" ")
            except UnicodeDecodeError:
                return self._malformed("not UTF-8")
            if not self._user or len(digest) != 32:
                return self._malformed("expected user and digest")

            def found(_exchange: Exchange, secret: str | None) -> Outcome:
                wanted = hmac.new((secret or "").encode(), challenge, "md5").hexdigest()
                same = hmac.compare_digest(wanted.encode(), digest.lower().encode())
                if secret is None or not same:
                    return self._failed("wrong digest")
                return Success(self._user, "")

            self._then(found)
            return Pending(FindSecret(self._user))

        self._then(judge)
        return Challenge(challenge)

    # -- EXTERNAL ----------------------------------------------------------------------------------------------------

    def _external(self, response: bytes | None) -> Outcome:
        if response is None:
            return Challenge(b"")
        names = self._context.certificate_names
        if not names:
            return self._failed("no client certificate")
        try:
            wanted = response.decode()
        except UnicodeDecodeError:
            return self._malformed("not UTF-8")
        # A certificate may name several addresses: the one asked for, when it is among them, else the first.
        user = next((n for n in names if n.lower() == wanted.lower()), names[0])
        self._user = user
        return Success(user, wanted)


MECHANISMS: dict[str, Callable[[Exchange, Any], Outcome]] = {
    "SCRAM-SHA-256-PLUS": Exchange._scram_first,
    "SCRAM-SHA-256": Exchange._scram_first,
    "SCRAM-SHA-1-PLUS": Exchange._scram_first,
    "SCRAM-SHA-1": Exchange._scram_first,
    "OAUTHBEARER": Exchange._oauth,
    "XOAUTH2": Exchange._oauth,
    "PLAIN": Exchange._plain,
    "LOGIN": Exchange._login,
    "CRAM-MD5": Exchange._cram_md5,
    "EXTERNAL": Exchange._external,
}
# The password itself goes over the wire, or a token as good as it.
CLEAR_TEXT = frozenset({"PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"})

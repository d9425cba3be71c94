"""How a client of POP3, POP2 or IMAP logs in.

Owns      LoginService, LoginSession; peer_of_session(), for submission too
Flow      know_peer() → the protocol starts a login → Authenticator → challenges and responses → logged_in() or
          refuse_login()
Limits    one login at a time; the authenticator's own
Errors    a Refusal knows its words in each protocol
Blocking  never
Security  names, passwords and tokens are not logged; a login that was begun is cancelled with its connection
Standards RFC 4422 §3 (exchange), §3.5 (aborting)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.accounts.authenticator import Authenticator, Login, Peer
from gateway.accounts.model import Identity, Refusal
from gateway.net.connection import Connection
from gateway.net.tls import TlsContexts, certificate_names
from gateway.server.session import Service, Session
from gateway.store.store import Store

_EACH_PROTOCOL = "each protocol has its own"

# Begins a login; its argument is to be called with the end, now or later.
Start = Callable[[Callable[[Identity | Refusal], None]], Login]


class LoginService(Service, kw_only=True):
    """What the sessions of one listener share that read mail."""

    authenticator: Authenticator
    store: Store
    auth_mechanisms: Sequence[str] = ()  # the listener's own list; empty: auth.mechanisms


def peer_of_session(
    connection: Connection,
    contexts: TlsContexts | None,
    *,
    session: str,
    client: str,
    client_ip: str,
    service: str,
    tls: bool,
) -> Peer:
    """Who asks, as it is connected now.  tls: it counts as encrypted, by whoever did that."""
    encrypted = connection.tls
    return Peer(
        session=session,
        client=client,
        client_ip=client_ip,
        service=service,
        tls=tls,
        bindings=contexts.channel_bindings(encrypted) if encrypted and contexts else {},
        certificate_names=certificate_names(encrypted) if encrypted else (),
    )


class LoginSession(Session):
    """A session whose client has to say who it is."""

    __slots__ = ("login", "peer")

    _service: LoginService

    def __init__(self, service: LoginService, client: str = "", client_ip: str = "") -> None:
        super().__init__(service, client, client_ip)
        self.peer: Peer = None  # type: ignore[assignment]  # set by know_peer()
        self.login: Login | None = None  # that is going on

    # -- what a protocol fills in ------------------------------------------------------------------------------------

    def logged_in(self, identity: Identity) -> None:
        """The client is that account: answer the login, and resume()."""
        raise AssertionError(_EACH_PROTOCOL)

    def refuse_login(self, refusal: Refusal) -> None:
        """Answer the login: it failed."""
        raise AssertionError(_EACH_PROTOCOL)

    # -- what protocols use ------------------------------------------------------------------------------------------

    def know_peer(self, *, tls: bool) -> None:
        """Who is asking, over what: again after a TLS handshake."""
        self.peer = peer_of_session(
            self._connection,
            self._service.tls,
            session=self.session_id,
            client=self.client,
            client_ip=self.client_ip,
            service=self._service.name,
            tls=tls,
        )

    def check_password(self, user: str, password: str) -> None:
        """The client's name and password, in the clear."""
        check = self._service.authenticator.check_password
        self.authenticate(lambda done: check(self.peer, user, password, done))

    def exchange(self, mechanism: str, initial: bytes | None) -> None:
        """Begin a SASL exchange.  initial: the client's initial response; None: it waits for a challenge."""
        service = self._service

        def start(done: Callable[[Identity | Refusal], None]) -> Login:
            login = service.authenticator.start(mechanism, self.peer, self._challenge, done, service.auth_mechanisms)
            self.login = login
            login.respond(initial)
            return login

        self.authenticate(start)

    def authenticate(self, start: Start) -> None:
        """Begin a login; logged_in() or refuse_login() ends it, maybe before this returns."""
        self.wait()
        ended = False

        def done(outcome: Identity | Refusal) -> None:
            nonlocal ended
            ended = True
            self.login = None
            if self._connection.closed:
                return
            if isinstance(outcome, Refusal):
                self.refuse_login(outcome)
                self.resume()
            else:
                self.logged_in(outcome)

        login = start(done)
        if not ended:
            self.login = login

    def respond_to_challenge(self, response: bytes) -> None:
        """The client's answer."""
        assert self.login is not None
        self.wait()
        self.login.respond(response)

    def cancel_login(self) -> None:
        """The client gave up, or is gone."""
        if self.login is not None:
            self.login.cancel()
            self.login = None

    def _challenge(self, octets: bytes) -> None:
        if not self._connection.closed:
            self.machine.challenge(octets)
            self.resume()

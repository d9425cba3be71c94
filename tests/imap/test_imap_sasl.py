"""AUTHENTICATE in dialogues: each mechanism, with and without an initial response, and all that goes wrong."""

from __future__ import annotations

import base64
import hmac
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from accounts_rig import scram_responses
from cryptography.hazmat.primitives.asymmetric import ec
from imap.rig import ALICE, BOB, MESSAGE, PASSWORD, TLS_CONFIG, ImapClient, ImapGateway
from imap.test_imap_login import b64, end_point
from login_peers import RunningIssuer, bearer, client_certificate

CAROL = "carol@example.test"  # without an account
AUTH = """
[auth]
mechanisms = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "OAUTHBEARER", "XOAUTH2", "EXTERNAL"]
[auth.oauth]
timeout_s = 60.0
scope = "mail"
"""
INTROSPECTION = """
introspection_url = "{url}/introspect"
client_id = "gateway"
client_secret_file = "{directory}/secret"
"""
KEYS = """
jwks_url = "{url}/keys"
issuer = "https://issuer.test"
"""

Response = bytes | Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def issuer() -> Iterator[RunningIssuer]:
    with RunningIssuer() as running:
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return client_certificate(tmp_path_factory.mktemp("authority"), ALICE)


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory,
    certificate: tuple[Path, Path],
    authority: tuple[Path, Path],
    issuer: RunningIssuer,
) -> Iterator[ImapGateway]:
    """It asks the issuer about each token."""
    directory = tmp_path_factory.mktemp("imap")
    for name, path in (("tls.pem", certificate[0]), ("tls.key", certificate[1]), ("ca.pem", authority[0])):
        (directory / name).write_bytes(path.read_bytes())
        (directory / name).chmod(0o600)
    (directory / "secret").write_text("s3cret")
    tls = TLS_CONFIG.replace("[tls]\n", '[tls]\nclient_ca_file = "{directory}/ca.pem"\n')
    toml = (tls + AUTH + INTROSPECTION).replace("{directory}", str(directory)).replace("{url}", issuer.url)
    with ImapGateway(directory, toml) as running:
        running.add_account(ALICE, allow_apop=True)
        running.add_account(BOB)
        running.deliver(ALICE, MESSAGE)
        yield running


def authenticate(
    imap: ImapClient, mechanism: str, *responses: Response, initial: bool = False
) -> tuple[list[bytes], bytes]:
    """(challenges, tagged line) of an exchange; initial: the first response goes along (RFC 4959)."""
    todo = list(responses)
    challenges: list[bytes] = []
    first = b""
    if initial:
        octets = todo.pop(0)
        assert isinstance(octets, bytes)
        first = b" " + (base64.b64encode(octets) or b"=")
    tag = imap.begin(b"AUTHENTICATE " + mechanism.encode() + first)
    while (line := imap.response()).startswith(b"+ "):
        challenges.append(base64.b64decode(line[2:], validate=True))
        response = todo.pop(0)
        octets = response(challenges[-1]) if callable(response) else response
        imap.write(octets if octets == b"*" else base64.b64encode(octets))
        imap.write(b"\r\n")
    assert not todo and line.startswith(tag + b" "), (todo, line)
    return challenges, line[len(tag) + 1 :]


def is_in(imap: ImapClient, tagged: bytes) -> None:
    """The client is alice now; and nobody again."""
    assert tagged.startswith(b"OK [CAPABILITY "), tagged
    assert imap.ok("STATUS INBOX (MESSAGES)") == [b'STATUS "INBOX" (MESSAGES 1)']
    imap.ok("UNAUTHENTICATE")


INITIAL = pytest.mark.parametrize("initial", [False, True], ids=["asked", "initial"])


# -- tokens ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def tokens(issuer: RunningIssuer) -> None:
    good = {"email": "Alice@example.test", "scope": "openid mail", "exp": time.time() + 600}
    issuer.active = {
        "good": good,
        "narrow": {**good, "scope": "openid"},
        "old": {**good, "exp": time.time() - 1},
        "stranger": {**good, "email": CAROL},
    }


def xoauth2(token: str, user: str = ALICE) -> bytes:
    return f"user={user}\x01auth=Bearer {token}\x01\x01".encode()


@INITIAL
@pytest.mark.parametrize(("mechanism", "message"), [("OAUTHBEARER", bearer), ("XOAUTH2", xoauth2)])
def test_a_token(gateway: ImapGateway, mechanism: str, message: Callable[..., bytes], initial: bool) -> None:
    with gateway.connect() as imap:
        assert f"AUTH={mechanism}".encode() in re.split(rb"[] ]", imap.greeting)
        challenges, tagged = authenticate(imap, mechanism, message("good"), initial=initial)
        assert challenges == ([] if initial else [b""])
        is_in(imap, tagged)
        for token in ("narrow", "old", "unknown"):
            challenges, tagged = authenticate(imap, mechanism, message(token), b"\x01", initial=initial)
            assert json.loads(challenges[-1]) == {"status": "invalid_token", "scope": "mail"}
            assert tagged.startswith(b"NO [AUTHENTICATIONFAILED] ")
        _, tagged = authenticate(imap, mechanism, message("good", BOB), initial=initial)
        assert tagged.startswith(b"NO [AUTHORIZATIONFAILED] "), "a token for one is none for another"
        _, tagged = authenticate(imap, mechanism, message("stranger", CAROL), initial=initial)
        assert tagged.startswith(b"NO [AUTHENTICATIONFAILED] ")
        challenges, tagged = authenticate(imap, mechanism, message("unknown"), b"*", initial=initial)
        assert json.loads(challenges[-1])["status"] == "invalid_token" and tagged.startswith(b"BAD ")
        is_in(imap, authenticate(imap, mechanism, message("good"), initial=initial)[1])


@pytest.mark.parametrize(
    "message", [b"", b"n,,\x01\x01", b"auth=Bearer good", b"n,,\x01auth=Basic eDp5\x01\x01", b"\xff"]
)
def test_what_is_no_token_is_bad(gateway: ImapGateway, message: bytes) -> None:
    with gateway.connect() as imap:
        assert authenticate(imap, "OAUTHBEARER", message)[1].startswith(b"BAD ")
        imap.ok("NOOP")


def test_an_issuer_that_cannot_be_asked_is_no_refusal(
    tmp_path: Path, gateway: ImapGateway, issuer: RunningIssuer
) -> None:
    with gateway.connect() as imap:
        issuer.status = 500
        try:
            for initial in (False, True):
                challenges, tagged = authenticate(imap, "OAUTHBEARER", bearer("another"), initial=initial)
                assert b"" not in challenges[1:] and tagged.startswith(b"NO [UNAVAILABLE] ")
        finally:
            issuer.status = 200
        assert authenticate(imap, "XOAUTH2", xoauth2("another"), b"")[1].startswith(b"NO [AUTHENTICATIONFAILED] ")
        is_in(imap, authenticate(imap, "OAUTHBEARER", bearer("good"))[1])
    with RunningIssuer() as gone:
        (tmp_path / "secret").write_text("s3cret")
        toml = (AUTH + INTROSPECTION).replace("{directory}", str(tmp_path)).replace("{url}", gone.url)
        with ImapGateway(tmp_path, toml) as running:
            running.add_account(ALICE)
            gone.close()
            with running.connect() as imap:
                assert authenticate(imap, "OAUTHBEARER", bearer("good"))[1].startswith(b"NO [UNAVAILABLE] ")


def test_a_signed_token(tmp_path: Path, issuer: RunningIssuer) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer.add_key(key, "k1")
    claims = {"email": ALICE, "iss": "https://issuer.test", "scope": "mail", "exp": time.time() + 600}

    def sign(with_key: Any = key, **other: Any) -> str:
        return jwt.encode({**claims, **other}, with_key, algorithm="ES256", headers={"kid": "k1"})

    with ImapGateway(tmp_path, (AUTH + KEYS).replace("{url}", issuer.url)) as gateway:
        gateway.add_account(ALICE)
        gateway.deliver(ALICE, MESSAGE)
        with gateway.connect() as imap:
            is_in(imap, authenticate(imap, "OAUTHBEARER", bearer(sign()), initial=True)[1])
            for token in (
                sign(ec.generate_private_key(ec.SECP256R1())), sign(exp=time.time() - 60), sign(iss="https://other.test")
            ):  # fmt: skip
                challenges, tagged = authenticate(imap, "OAUTHBEARER", bearer(token), b"\x01")
                assert json.loads(challenges[1])["status"] == "invalid_token"
                assert tagged.startswith(b"NO [AUTHENTICATIONFAILED] ")
            is_in(imap, authenticate(imap, "XOAUTH2", xoauth2(sign()))[1])


# -- certificates ----------------------------------------------------------------------------------------------------


@pytest.fixture
def context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


@INITIAL
def test_external(
    gateway: ImapGateway, authority: tuple[Path, Path], context: ssl.SSLContext, initial: bool
) -> None:
    with gateway.connect() as imap:
        assert b"AUTH=EXTERNAL" not in imap.greeting
        assert imap.no("AUTHENTICATE EXTERNAL =").startswith(b"NO [CANNOT] ")
    with gateway.connect(gateway.ports[2], context) as imap:
        assert b"AUTH=EXTERNAL" not in imap.greeting, "no certificate was shown"
    context.load_cert_chain(authority[1])
    with gateway.connect(gateway.ports[2], context) as imap:
        assert b" AUTH=EXTERNAL" in imap.greeting
        for authzid in (b"", ALICE.encode()):
            is_in(imap, authenticate(imap, "EXTERNAL", authzid, initial=initial)[1])
        _, tagged = authenticate(imap, "EXTERNAL", BOB.encode(), initial=initial)
        assert tagged.startswith(b"NO [AUTHORIZATIONFAILED] ")
    with gateway.connect(gateway.ports[1]) as imap:  # STARTTLS
        imap.ok("STARTTLS")
        imap.start_tls(context)
        assert b" AUTH=EXTERNAL" in imap.ok("CAPABILITY")[0]
        is_in(imap, authenticate(imap, "EXTERNAL", b"", initial=initial)[1])


# -- passwords -------------------------------------------------------------------------------------------------------


@INITIAL
def test_scram_plus(gateway: ImapGateway, context: ssl.SSLContext, initial: bool) -> None:
    with gateway.connect() as imap:
        assert b"-PLUS" not in imap.greeting, "there is nothing to bind to"
        assert imap.no("AUTHENTICATE SCRAM-SHA-256-PLUS").startswith(b"NO [CANNOT] ")
    with gateway.connect(gateway.ports[2], context) as imap:
        assert b" AUTH=SCRAM-SHA-256-PLUS " in imap.greeting
        binding = end_point(imap.sock)

        def exchange(password: str, *, mechanism: str = "SCRAM-SHA-256-PLUS", **how: Any) -> bytes:
            responses = scram_responses(ALICE, password, **how)
            wrong = password != PASSWORD or how.get("binding", binding) != binding
            return authenticate(imap, mechanism, *responses[: 2 if wrong else 3], initial=initial)[1]

        flag = "p=tls-server-end-point"
        is_in(imap, exchange(PASSWORD, flag=flag, binding=binding))
        assert exchange("wrong", flag=flag, binding=binding).startswith(b"NO [AUTHENTICATIONFAILED] ")
        # somebody between client and server
        assert exchange(PASSWORD, flag=flag, binding=b"x" * 32).startswith(b"NO [AUTHENTICATIONFAILED] ")
        is_in(imap, exchange(PASSWORD, mechanism="SCRAM-SHA-256"))
        # a client that supports binding was told that we do not: a downgrade (RFC 5802 §6)
        [hidden, *_] = scram_responses(ALICE, PASSWORD, flag="y")
        assert authenticate(imap, "SCRAM-SHA-256", hidden, initial=initial)[1].startswith(b"BAD ")
        tagged = authenticate(imap, "SCRAM-SHA-256", *scram_responses(ALICE, PASSWORD)[:1], b"*", initial=initial)[1]
        assert tagged.startswith(b"BAD ")


def cram(user: str, password: str) -> Callable[[bytes], bytes]:
    return lambda challenge: f"{user} {hmac.new(password.encode(), challenge, 'md5').hexdigest()}".encode()


def test_cram_md5(gateway: ImapGateway) -> None:
    with gateway.connect() as imap:
        assert b" AUTH=CRAM-MD5 " in imap.greeting
        [one], tagged = authenticate(imap, "CRAM-MD5", cram(ALICE, PASSWORD))
        is_in(imap, tagged)
        [other], tagged = authenticate(imap, "CRAM-MD5", cram(ALICE, "wrong"))
        assert tagged.startswith(b"NO [AUTHENTICATIONFAILED] ")
        assert one != other and one.startswith(b"<") and one.endswith(b"@mx.example.test>")
        for user in (BOB, CAROL):  # whose password is not kept; who does not exist
            assert authenticate(imap, "CRAM-MD5", cram(user, PASSWORD))[1].startswith(b"NO [AUTHENTICATIONFAILED] ")
        assert authenticate(imap, "CRAM-MD5", b"alice")[1].startswith(b"BAD ")
        assert authenticate(imap, "CRAM-MD5", b"*")[1].startswith(b"BAD ")


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "OAUTHBEARER", "XOAUTH2"])
def test_whoever_gives_up_may_try_again(gateway: ImapGateway, mechanism: str) -> None:
    with gateway.connect() as imap:
        assert authenticate(imap, mechanism, b"*")[1].startswith(b"BAD ")
        tag = imap.begin(f"AUTHENTICATE {mechanism}")
        assert imap.response().startswith(b"+ ")
        imap.write(b"not base64!\r\n")
        assert imap.finish(tag)[1].startswith(b"BAD ")
        is_in(imap, authenticate(imap, "XOAUTH2", xoauth2("good"), initial=True)[1])


def test_what_is_not_offered_is_refused(gateway: ImapGateway) -> None:
    """PLAIN is not among the mechanisms here; LOGIN the command is about passwords all the same."""
    with gateway.connect() as imap:
        assert b"AUTH=PLAIN" not in imap.greeting
        assert imap.no("AUTHENTICATE PLAIN " + b64(f"\0{ALICE}\0{PASSWORD}".encode())).startswith(b"NO [CANNOT] ")

"""How a client proves who it is.

Owns      exchange(): the client's half of a SASL mechanism; choose()
Errors    ValueError from a server that cannot prove to know the password (SCRAM), or offers nothing that we have
Standards RFC 4954 (AUTH), RFC 4616 (PLAIN), RFC 5802 and 7677 (SCRAM-SHA-256); LOGIN and XOAUTH2 as servers have them
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Generator

from smtp_blaster.plan import MECHANISMS

Exchange = Generator[bytes | None, bytes, None]  # None first: the server speaks first


def choose(wanted: str, offered: str) -> str:
    """The mechanism to use of those in the keyword line "AUTH PLAIN LOGIN".  Raises ValueError."""
    words = offered.upper().split()
    for mechanism in [wanted] if wanted else MECHANISMS[:3]:
        if mechanism in words:
            return mechanism
    if not words:
        raise ValueError("the server does not offer AUTH here (perhaps only behind TLS: --tls)")
    raise ValueError(f"the server offers {offered}, not {wanted or ' or '.join(MECHANISMS[:3])}")


def exchange(mechanism: str, user: str, password: str) -> Exchange:
    """Yields the client's messages, is sent the server's."""
    if mechanism == "PLAIN":
        yield f"\0{user}\0{password}".encode()
    elif mechanism == "LOGIN":
        yield None
        yield user.encode()
        yield password.encode()
    elif mechanism == "XOAUTH2":
        yield f"user={user}\x01auth=Bearer {password}\x01\x01".encode()
        yield b""  # the challenge says why not; the reply comes behind an empty answer
    else:
        yield from _scram(mechanism, user, password)


def _scram(mechanism: str, user: str, password: str) -> Exchange:
    # Only where it is used: it takes its time to load.
    from scramp import ScramClient, ScramException

    client = ScramClient([mechanism], user, password)
    try:
        challenge = yield client.get_client_first().encode()
        client.set_server_first(challenge.decode())
        challenge = yield client.get_client_final().encode()
        client.set_server_final(challenge.decode())
    except (ScramException, UnicodeDecodeError) as error:
        raise ValueError(f"{mechanism}: {error}") from error
    yield b""  # RFC 4954 §4: the server's last word came as a challenge


def late(first: bytes, rest: Exchange) -> Exchange:
    """The same exchange without an initial response: its first message answers an empty challenge."""
    yield None
    challenge = yield first
    while True:
        try:
            answer = rest.send(challenge)
        except StopIteration:
            return
        challenge = yield answer


def encoded(message: bytes) -> bytes:
    """As it is sent; RFC 4954 §4: an empty initial response is "="."""
    return b64encode(message)


def decoded(text: str) -> bytes:
    """Of a 334's text.  Raises ValueError."""
    return b64decode(text, validate=True)

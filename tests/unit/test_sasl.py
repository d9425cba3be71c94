"""SASL, the server side: the RFCs' own examples, another project's client, and what breaks the form."""

from __future__ import annotations

import base64
import hmac
from typing import Any

import pytest
import scramp
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol import sasl
from gateway.protocol.sasl import (
    Challenge,
    CheckPassword,
    CheckToken,
    Context,
    Exchange,
    Failure,
    FindKeys,
    FindSecret,
    Pending,
    Success,
)
from gateway.protocol.scram import ScramKeys, ScramServer, derive_keys

BINDING = b"\x01" * 32
CONTEXT = Context(hostname="mx.example.org", nonce="fresh-server-nonce")


def start(mechanism: str, context: Context = CONTEXT) -> Exchange:
    return Exchange(mechanism, context)


# -- PLAIN and LOGIN (RFC 4616 §4) -----------------------------------------------------------------


def test_plain_with_and_without_authzid() -> None:
    exchange = start("PLAIN")
    assert exchange.step(b"\0tim\0tanstaaftanstaaf") == Pending(CheckPassword("tim", "tanstaaftanstaaf"))
    assert exchange.answer(True) == Success("tim", "")
    exchange = start("PLAIN")
    assert exchange.step(b"Ursel\0Kurt\0xipj3plmq") == Pending(CheckPassword("Kurt", "xipj3plmq"))
    assert exchange.answer(True) == Success("Kurt", "Ursel")


def test_plain_without_initial_response_asks_for_it() -> None:
    exchange = start("PLAIN")
    assert exchange.step(None) == Challenge(b"")
    assert exchange.step("\0jürgen\0pä".encode()) == Pending(CheckPassword("jürgen", "pä"))
    assert exchange.answer(False) == Failure("wrong password", user="jürgen")


@pytest.mark.parametrize(
    "response", [b"", b"\0", b"a\0b", b"\0\0x", b"\0x\0", b"\0x\0\xff", b"\0a\0b\0c", b"x" * 20000]
)
def test_plain_of_another_form_is_malformed(response: bytes) -> None:
    outcome = start("PLAIN").step(response)
    assert isinstance(outcome, Failure) and outcome.malformed


def test_login_asks_twice_and_takes_an_initial_response() -> None:
    exchange = start("LOGIN")
    assert exchange.step(None) == Challenge(b"Username:")
    assert exchange.step(b"alice") == Challenge(b"Password:")
    assert exchange.step(b"secret") == Pending(CheckPassword("alice", "secret"))
    assert exchange.answer(True) == Success("alice", "")
    exchange = start("LOGIN")
    assert exchange.step(b"alice") == Challenge(b"Password:")
    outcome = exchange.step(b"\xff")
    assert isinstance(outcome, Failure) and outcome.malformed


# -- SCRAM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "salt", "iterations", "client_nonce", "server_nonce", "proof", "signature"),
    [
        (  # RFC 5802 §5
            "SHA-1",
            "QSXCR+Q6sek8bf92",
            4096,
            "fyko+d2lbbFgONRv9qkxdawL",
            "3rfcNHYJY1ZVvWVs7j",
            "v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
            "rmF9pqV8S7suAoZWja4dJRkFsKQ=",
        ),
        (  # RFC 7677 §3
            "SHA-256",
            "W22ZaJ0SNY7soEsUEjb6gQ==",
            4096,
            "rOprNGfwEbeRWgbNEkqO",
            "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
            "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
        ),
    ],
)
def test_the_examples_of_the_rfcs(
    kind: str,
    salt: str,
    iterations: int,
    client_nonce: str,
    server_nonce: str,
    proof: str,
    signature: str,
) -> None:
    keys = derive_keys(b"pencil", kind, iterations, base64.b64decode(salt))
    server = ScramServer(kind, plus=False, bindings={}, plus_offered=False, nonce=server_nonce)
    assert server.client_first(f"n,,n=user,r={client_nonce}".encode()) == ("user", "")
    nonce = client_nonce + server_nonce
    assert server.server_first(keys) == f"r={nonce},s={salt},i={iterations}".encode()
    assert server.client_final(f"c=biws,r={nonce},p={proof}".encode()) == f"v={signature}".encode()


def with_scramp(
    mechanism: str,
    *,
    password: str = "secret",
    context: Context = CONTEXT,
    keys: ScramKeys | None = None,
) -> Any:
    """Another project's client against our server."""
    kind = mechanism.removeprefix("SCRAM-").removesuffix("-PLUS")
    keys = keys or derive_keys(b"secret", kind, 4096, b"a salt of 16 oct")
    client = scramp.ScramClient([mechanism], "al,i=ce", password)
    exchange = start(mechanism, context)
    asked = exchange.step(client.get_client_first().encode())
    if isinstance(asked, Failure):
        return asked
    assert asked == Pending(FindKeys("al,i=ce", kind))
    first = exchange.answer(keys)
    assert isinstance(first, Challenge)
    client.set_server_first(first.data.decode())
    final = exchange.step(client.get_client_final().encode())
    if isinstance(final, Failure):
        return final
    assert isinstance(final, Challenge)
    client.set_server_final(final.data.decode())  # raises when our signature is wrong
    return exchange.step(b"")


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1"])
def test_scram_with_another_client(mechanism: str) -> None:
    assert with_scramp(mechanism) == Success("al,i=ce", "")
    wrong = with_scramp(mechanism, password="other")
    assert wrong == Failure("wrong proof", user="al,i=ce")


def test_scram_of_an_unknown_user_fails_like_a_wrong_password() -> None:
    nobody = ScramKeys(b"0123456789abcdef", 4096, b"x" * 32, b"y" * 32)
    assert with_scramp("SCRAM-SHA-256", keys=nobody) == Failure("wrong proof", user="al,i=ce")


def first(mechanism: str, message: bytes, context: Context) -> Any:
    return Exchange(mechanism, context).step(message)


def scram_client(message_first: bytes, binding: bytes, exchange: Exchange) -> Any:
    """A client by hand: what scramp's does not do (authzid, other flags)."""
    keys = derive_keys(b"secret", "SHA-256", 4096, b"a salt of 16 oct")
    exchange.step(message_first)
    challenge = exchange.answer(keys)
    header, bare = message_first[: message_first.index(b"n=")], message_first[message_first.index(b"n=") :]
    nonce = challenge.data.split(b",")[0]
    without = b"c=" + base64.b64encode(header + binding) + b"," + nonce
    signed = bare + b"," + challenge.data + b"," + without
    import hashlib

    salted = hashlib.pbkdf2_hmac("sha256", b"secret", b"a salt of 16 oct", 4096)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(keys.stored_key, signed, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    return exchange.step(without + b",p=" + base64.b64encode(proof))


PLUS = Context(
    nonce="server", bindings={"tls-server-end-point": BINDING}, plus_offered=True
)


def test_plus_binds_to_the_certificate() -> None:
    message = b"p=tls-server-end-point,,n=alice,r=abc"
    exchange = start("SCRAM-SHA-256-PLUS", PLUS)
    assert isinstance(scram_client(message, BINDING, exchange), Challenge)
    assert exchange.step(b"") == Success("alice", "")
    # Somebody in the middle shows another certificate.
    exchange = start("SCRAM-SHA-256-PLUS", PLUS)
    outcome = scram_client(message, b"\x02" * 32, exchange)
    assert outcome == Failure("channel bindings do not match", user="alice")


def test_scram_carries_an_authzid() -> None:
    exchange = start("SCRAM-SHA-256")
    assert isinstance(scram_client(b"n,a=bo=2Cb,n=alice,r=abc", b"", exchange), Challenge)
    assert exchange.step(b"") == Success("alice", "bo,b")


@pytest.mark.parametrize(
    ("mechanism", "message", "reason"),
    [
        ("SCRAM-SHA-256", b"y,,n=alice,r=abc", "somebody hid the -PLUS form from the client"),
        ("SCRAM-SHA-256", b"p=tls-server-end-point,,n=alice,r=abc", "not available"),
        ("SCRAM-SHA-256-PLUS", b"n,,n=alice,r=abc", "-PLUS without channel binding"),
        ("SCRAM-SHA-256-PLUS", b"p=tls-exporter,,n=alice,r=abc", "not available"),
        ("SCRAM-SHA-256", b"n,,m=x,n=alice,r=abc", "mandatory extension"),
        ("SCRAM-SHA-256", b"n,,n=al=ice,r=abc", "bad name"),
        ("SCRAM-SHA-256", b"n,,n=,r=abc", "user is empty"),
        ("SCRAM-SHA-256", b"n,,n=alice,r=", "bad nonce"),
        ("SCRAM-SHA-256", b"n,b=x,n=alice,r=abc", "bad authzid"),
        ("SCRAM-SHA-256", b"x,,n=alice,r=abc", "bad gs2-cbind-flag"),
        ("SCRAM-SHA-256", b"n=alice,r=abc", ""),
        ("SCRAM-SHA-256", b"", "no gs2-header"),
    ],
)
def test_scram_refuses(mechanism: str, message: bytes, reason: str) -> None:
    outcome = first(mechanism, message, PLUS)
    assert isinstance(outcome, Failure) and outcome.malformed
    assert reason in outcome.reason


def test_a_client_that_knows_of_no_plus_form_may_say_so_where_none_is_offered() -> None:
    outcome = first("SCRAM-SHA-256", b"y,,n=alice,r=abc", CONTEXT)
    assert outcome == Pending(FindKeys("alice", "SHA-256"))


@pytest.mark.parametrize(
    "final",
    [
        b"",
        b"c=biws,r=abcserver",
        b"c=biws,r=abcserver,p=",
        b"c=biws,r=abcserver,p=AAAA",
        b"c=biws,r=abcserver,p=!!!!",
        b"c=biws,r=other,p=" + base64.b64encode(b"x" * 32),
        b"c=eSws,r=abcserver,p=" + base64.b64encode(b"x" * 32),
        b"x=biws,r=abcserver,p=" + base64.b64encode(b"x" * 32),
        b"c=biws,r=abcserver,p=" + base64.b64encode(b"x" * 32),
    ],
)
def test_a_wrong_final_message_fails(final: bytes) -> None:
    exchange = Exchange("SCRAM-SHA-256", Context(nonce="server"))
    exchange.step(b"n,,n=alice,r=abc")
    exchange.answer(derive_keys(b"secret", "SHA-256", 4096, b"salt"))
    outcome = exchange.step(final)
    assert isinstance(outcome, Failure) and outcome.user == "alice"


# -- tokens ----------------------------------------------------------------------------------------


def test_oauthbearer_as_in_rfc_7628() -> None:
    message = (
        b"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01"
        b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01"
    )
    exchange = start("OAUTHBEARER", Context(oauth_error=b'{"status":"invalid_token"}'))
    token = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="
    assert exchange.step(message) == Pending(CheckToken("user@example.com", token))
    assert exchange.answer("user@example.com") == Success("user@example.com", "user@example.com")


def test_a_token_that_is_not_valid_is_told_first_and_refused_then() -> None:
    exchange = start("XOAUTH2", Context(oauth_error=b'{"status":"invalid_token"}'))
    message = b"user=someuser@example.com\x01auth=Bearer ya29.vF9dft4qmTc2Nvb3R\x01\x01"
    asked = Pending(CheckToken("someuser@example.com", "ya29.vF9dft4qmTc2Nvb3R"))
    assert exchange.step(message) == asked
    assert exchange.answer(None) == Challenge(b'{"status":"invalid_token"}')
    assert exchange.step(b"\x01") == Failure("token not valid", user="someuser@example.com")


@pytest.mark.parametrize(
    "message", [b"", b"n,\x01auth=Bearer x\x01\x01", b"n,,\x01auth=Basic x\x01\x01", b"n,,\x01\x01", b"\xff"]
)
def test_oauthbearer_of_another_form_is_malformed(message: bytes) -> None:
    outcome = start("OAUTHBEARER").step(message)
    assert isinstance(outcome, Failure) and outcome.malformed


# -- CRAM-MD5 and EXTERNAL -------------------------------------------------------------------------


def test_cram_md5_as_in_rfc_2195() -> None:
    context = Context(hostname="postoffice.reston.mci.net", nonce="1896.697170952")
    exchange = start("CRAM-MD5", context)
    assert exchange.step(None) == Challenge(b"<1896.697170952@postoffice.reston.mci.net>")
    asked = exchange.step(b"tim b913a602c7eda7a495b4e6e7334d3890")
    assert asked == Pending(FindSecret("tim"))
    assert exchange.answer("tanstaaftanstaaf") == Success("tim", "")


@pytest.mark.parametrize("secret", ["other", None])
def test_cram_md5_with_a_wrong_or_no_secret_fails(secret: str | None) -> None:
    exchange = start("CRAM-MD5")
    exchange.step(None)
    exchange.step(b"tim b913a602c7eda7a495b4e6e7334d3890")
    assert exchange.answer(secret) == Failure("wrong digest", user="tim")


def test_external_is_the_name_in_the_certificate() -> None:
    context = Context(certificate_names=("alice@example.org", "Bob@example.org"))
    exchange = start("EXTERNAL", context)
    assert exchange.step(None) == Challenge(b"")
    assert exchange.step(b"") == Success("alice@example.org", "")
    assert start("EXTERNAL", context).step(b"bob@example.org") == Success(
        "Bob@example.org", "bob@example.org"
    )
    other = start("EXTERNAL", context).step(b"carol@example.org")
    assert other == Success("alice@example.org", "carol@example.org")  # for the caller to refuse
    assert isinstance(start("EXTERNAL").step(b""), Failure)


# -- whatever comes --------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(sasl.MECHANISMS)),
    st.lists(st.one_of(st.binary(max_size=80), st.none()), min_size=1, max_size=4),
    st.sampled_from([b"", b"n,,", b"p=tls-server-end-point,,", b"n,,n=a,r=b", b"\0a\0", b"user=a\x01auth=Bearer "]),
)
def test_no_response_raises(mechanism: str, responses: list[bytes | None], head: bytes) -> None:
    keys = ScramKeys(b"0123456789abcdef", 4096, b"x" * 32, b"y" * 32)
    context = Context(
        nonce="server", bindings={"tls-server-end-point": BINDING}, certificate_names=("a@b",)
    )
    exchange = Exchange(mechanism, context)
    answers: dict[type, Any] = {CheckPassword: False, FindKeys: keys, FindSecret: None, CheckToken: None}
    for number, response in enumerate(responses):
        if number and response is None:
            continue
        outcome = exchange.step(head + response if response is not None and not number else response)
        while isinstance(outcome, Pending):
            outcome = exchange.answer(answers[type(outcome.question)])
        if isinstance(outcome, Failure | Success):
            assert mechanism == "EXTERNAL" or isinstance(outcome, Failure)
            break

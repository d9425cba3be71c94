"""The server side of SCRAM: messages in, messages out; what a server keeps instead of a password.

Owns      ScramKeys, derive_keys(), ScramServer
Flow      client_first() → names → (the caller finds the keys) → server_first(); client_final() → server-final
Limits    MESSAGE_OCTETS_MAX
Errors    ScramError: the exchange has failed; its text is for the log, the client learns only that it failed
Security  a client that believes we offer no channel binding where we do is refused (downgrade, RFC 5802 §6)
Standards RFC 5802, RFC 7677, RFC 5929 (tls-server-end-point), RFC 9266 (tls-exporter)
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Mapping

import msgspec

MESSAGE_OCTETS_MAX = 4096
HASHES = {"SHA-1": "sha1", "SHA-256": "sha256"}


class ScramError(Exception):
    """What the client sent is wrong: form, binding, nonce or proof."""


class ScramKeys(msgspec.Struct, frozen=True):
    """What a server keeps instead of the password (RFC 5802 §3)."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes


def derive_keys(password: bytes, kind: str, iterations: int, salt: bytes) -> ScramKeys:
    """The keys of RFC 5802 §3 for "SHA-256" or "SHA-1"; the password went through SASLprep.

    Computes iterations times, without the GIL: not for the event loop.
    """
    name = HASHES[kind]
    salted = hashlib.pbkdf2_hmac(name, password, salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", name)
    server_key = hmac.digest(salted, b"Server Key", name)
    return ScramKeys(salt, iterations, hashlib.new(name, client_key).digest(), server_key)


class ScramServer:
    """One exchange."""

    def __init__(
        self,
        kind: str,
        *,
        plus: bool,
        bindings: Mapping[str, bytes],
        plus_offered: bool,
        nonce: str,
    ) -> None:
        """kind: "SHA-256" or "SHA-1"; plus: the client chose the -PLUS form; bindings: channel bindings by name;
        plus_offered: the -PLUS form was offered to it; nonce: ours, printable and without comma."""
        self._hash = HASHES[kind]
        self._plus = plus
        self._bindings = bindings
        self._plus_offered = plus_offered
        self._nonce = nonce.encode()
        self._header = b""  # gs2-header, and behind it the channel binding
        self._binding = b""
        self._first_bare = b""
        self._server_first = b""
        self._keys = ScramKeys(b"", 0, b"", b"")

    def client_first(self, message: bytes) -> tuple[str, str]:
        """(user name, authzid or "").  RFC 5802 §7 client-first-message."""
        flag, comma, rest = message.partition(b",")
        authzid, comma2, bare = rest.partition(b",")
        if not comma or not comma2 or len(message) > MESSAGE_OCTETS_MAX:
            raise ScramError("no gs2-header")
        self._header = message[: len(message) - len(bare)]
        self._take_flag(flag)
        self._first_bare = bare
        attributes = bare.split(b",")
        if attributes[0].startswith(b"m="):
            raise ScramError("mandatory extension")  # RFC 5802 §5.1: we know none
        if len(attributes) < 2 or attributes[0][:2] != b"n=" or attributes[1][:2] != b"r=":
            raise ScramError("expected n=… and r=…")
        nonce = attributes[1][2:]
        if not nonce or not all(0x21 <= octet <= 0x7E for octet in nonce):
            raise ScramError("bad nonce")
        self._nonce = nonce + self._nonce
        if authzid and not authzid.startswith(b"a="):
            raise ScramError("bad authzid")
        return _saslname(attributes[0][2:]), _saslname(authzid[2:])

    def _take_flag(self, flag: bytes) -> None:
        if flag.startswith(b"p="):
            binding = self._bindings.get(flag[2:].decode("ascii", "replace"))
            if not self._plus or binding is None:
                raise ScramError("channel binding type not available here")
            self._binding = binding
        elif self._plus:
            raise ScramError("-PLUS without channel binding")
        elif flag == b"y":
            if self._plus_offered:
                raise ScramError("somebody hid the -PLUS form from the client")
        elif flag != b"n":
            raise ScramError("bad gs2-cbind-flag")

    def server_first(self, keys: ScramKeys) -> bytes:
        """For an unknown user the caller gives keys that nobody's proof fits."""
        self._keys = keys
        salt = b64encode(keys.salt)
        self._server_first = b"r=%b,s=%b,i=%d" % (self._nonce, salt, keys.iterations)
        return self._server_first

    def client_final(self, message: bytes) -> bytes:
        """server-final-message with our signature; ScramError when the proof is not that of the keys."""
        without_proof, comma, proof_text = message.rpartition(b",p=")
        attributes = without_proof.split(b",")
        if not comma or len(attributes) < 2 or len(message) > MESSAGE_OCTETS_MAX:
            raise ScramError("malformed client-final-message")
        try:
            proof = b64decode(proof_text, validate=True)
            bound = b64decode(attributes[0].removeprefix(b"c="), validate=True)
        except ValueError:
            raise ScramError("bad base64") from None
        if attributes[0][:2] != b"c=" or not hmac.compare_digest(bound, self._header + self._binding):
            raise ScramError("channel bindings do not match")
        if not hmac.compare_digest(attributes[1], b"r=" + self._nonce):
            raise ScramError("nonces do not match")
        signed = b",".join((self._first_bare, self._server_first, without_proof))
        signature = hmac.digest(self._keys.stored_key, signed, self._hash)
        if len(proof) != len(signature):
            raise ScramError("bad proof")
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
        found = hashlib.new(self._hash, client_key).digest()
        if not hmac.compare_digest(found, self._keys.stored_key):
            raise ScramError("wrong proof")
        return b"v=" + b64encode(hmac.digest(self._keys.server_key, signed, self._hash))


def _saslname(octets: bytes) -> str:
    """RFC 5802 §5.1: "," and "=" are written =2C and =3D."""
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        raise ScramError("a name that is not UTF-8") from None
    parts = text.split("=")
    if "\0" in text or any(part[:2] not in ("2C", "3D") for part in parts[1:]):
        raise ScramError("bad name")
    return text.replace("=2C", ",").replace("=3D", "=")

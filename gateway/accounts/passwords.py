"""Passwords: how they are prepared, kept and verified.

Owns      Hasher (new passwords), verify() (every scheme we can read), scram_keys()
Flow      password → prepared() → "$argon2id$…" and ScramKeys; at login verify(verifier, password)
Limits    PASSWORD_OCTETS_MAX; a check costs what its verifier says: run it in a thread
Errors    UnknownScheme names what is not understood; a wrong password is False
Blocking  verify() and scram_keys() compute for 10 to 100 ms; argon2, crypt(3) and PBKDF2 release the GIL
Security  comparisons take the same time wherever the first difference is
Standards RFC 9106 (Argon2), RFC 5802 §3 (SCRAM), RFC 4013 (SASLprep), RFC 2307 §5.3 ({SCHEME})

crypt(3) is the system's (libxcrypt on Debian), called directly: Python's own module is gone since 3.13,
and libraries that compute SHA512-CRYPT in Python hold the GIL for as long.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import ctypes.util
import hashlib
import hmac
import os
from collections.abc import Callable
from typing import Any

import argon2
from argon2.low_level import Type

from gateway.protocol.scram import ScramKeys, derive_keys

PASSWORD_OCTETS_MAX = 1024  # bounds what a hash has to read; nobody types so much
SALT_OCTETS = 16  # RFC 9106 §3.1
_CRYPT_DATA_OCTETS = 256 * 1024  # above sizeof(struct crypt_data) of glibc, libxcrypt and musl


class UnknownScheme(ValueError):
    """A stored verifier is of a kind we cannot read."""


class Hasher:
    """Makes what is kept of new passwords."""

    def __init__(
        self, *, time_cost: int, memory_kib: int, parallelism: int, scram_iterations: int
    ) -> None:
        self._argon2 = argon2.PasswordHasher(time_cost, memory_kib, parallelism, type=Type.ID)
        self.scram_iterations = scram_iterations
        # For users that do not exist: the same work as for the others, and no password fits.
        salt, digest = (base64.b64encode(os.urandom(n)).decode().rstrip("=") for n in (16, 32))
        costs = f"m={memory_kib},t={time_cost},p={parallelism}"
        self.nobody = f"$argon2id$v=19${costs}${salt}${digest}"

    def hash(self, password: str) -> str:
        """The verifier of a password: Argon2id in the PHC format."""
        return self._argon2.hash(prepared(password))


def prepared(password: str) -> str:
    """SASLprep of RFC 4013, as SCRAM's clients apply it.  Raises ValueError for what it forbids."""
    if not password:
        raise ValueError("the password is empty")
    if len(password.encode()) > PASSWORD_OCTETS_MAX:
        raise ValueError(f"the password is longer than {PASSWORD_OCTETS_MAX} octets")
    if password.isascii():
        if not password.isprintable():
            raise ValueError("the password contains control characters")
        return password
    from passlib.utils import saslprep  # 5 MB, for the few that need it

    return str(saslprep(password, param="the password"))


def scram_keys(password: str, kind: str, iterations: int, salt: bytes = b"") -> ScramKeys:
    """The keys for "SHA-256" or "SHA-1".  Raises ValueError for a password that SASLprep forbids."""
    salt = salt or os.urandom(SALT_OCTETS)
    return derive_keys(prepared(password).encode(), kind, iterations, salt)


def scram_text(keys: ScramKeys) -> str:
    """As Dovecot writes them: iterations,salt,stored key,server key, the octets in base64."""
    octets = (keys.salt, keys.stored_key, keys.server_key)
    return ",".join([str(keys.iterations), *(base64.b64encode(o).decode() for o in octets)])


def parse_scram(text: str) -> ScramKeys:
    """The inverse of scram_text().  Raises UnknownScheme."""
    try:
        iterations, *octets = text.split(",")
        salt, stored_key, server_key = (base64.b64decode(o, validate=True) for o in octets)
        return ScramKeys(salt, int(iterations), stored_key, server_key)
    except (ValueError, binascii.Error):
        raise UnknownScheme("SCRAM: expected iterations,salt,stored key,server key") from None


def plain_of(verifier: str) -> str | None:
    """The password itself where the verifier is nothing else ({PLAIN}, {CLEARTEXT})."""
    scheme, rest = split(verifier)
    return rest if scheme in ("PLAIN", "CLEARTEXT", "CLEAR") else None


def split(verifier: str) -> tuple[str, str]:
    """The scheme, upper case and without its encoding's suffix, and the rest: ("SSHA256", "…")."""
    if verifier.startswith("{") and "}" in verifier:
        scheme, _, rest = verifier[1:].partition("}")
        scheme = scheme.upper()
        return scheme.removesuffix(".B64").removesuffix(".BASE64"), rest
    if verifier.startswith("$argon2"):
        return "ARGON2", verifier
    if verifier.startswith("$apr1$"):
        return "APR1", verifier
    return "CRYPT", verifier


def check_scheme(verifier: str) -> None:
    """Nothing, when verify() can read it.  Raises UnknownScheme."""
    scheme, rest = split(verifier)
    if scheme.removesuffix(".HEX") not in _SCHEMES:
        raise UnknownScheme(f"{{{scheme}}} is not supported; known: {', '.join(sorted(_SCHEMES))}")
    if scheme.startswith("SCRAM"):
        parse_scram(rest)


def verify(verifier: str, password: str) -> bool:
    """True when the password is the one that the verifier was made of.  Raises UnknownScheme."""
    scheme, rest = split(verifier)
    function = _SCHEMES.get(scheme.removesuffix(".HEX"))
    if function is None:
        raise UnknownScheme(f"{{{scheme}}} is not supported")
    if len(password.encode(errors="replace")) > PASSWORD_OCTETS_MAX or "\0" in password:
        return False
    return function(scheme, rest, password)


def verify_prepared(verifier: str, password: str) -> bool:
    """verify() of a password that was prepared when it was set."""
    try:
        return verify(verifier, prepared(password))
    except UnknownScheme:
        raise
    except ValueError:
        verify(verifier, "-")  # it cannot fit; the time it takes must not tell
        return False


def _argon2(_scheme: str, verifier: str, password: str) -> bool:
    kind = Type.I if verifier.startswith("$argon2i$") else Type.ID
    try:
        return argon2.low_level.verify_secret(verifier.encode(), password.encode(), kind)
    except argon2.exceptions.VerifyMismatchError:
        return False
    except (argon2.exceptions.Argon2Error, UnicodeEncodeError) as error:
        raise UnknownScheme(f"Argon2: {error}") from None


def _crypt(_scheme: str, verifier: str, password: str) -> bool:
    library = _libcrypt()
    data = ctypes.create_string_buffer(_CRYPT_DATA_OCTETS)  # crypt_r(3): zeroed before the first call
    found = library.crypt_r(password.encode(), verifier.encode(), data)
    if not found or found.startswith(b"*"):  # crypt(5): failure tokens
        raise UnknownScheme(f"crypt(3) cannot read {verifier[:4]}…")
    return hmac.compare_digest(found, verifier.encode())


def _libcrypt() -> Any:
    if not _library:
        library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
        library.crypt_r.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
        library.crypt_r.restype = ctypes.c_char_p
        _library.append(library)
    return _library[0]


_library: list[Any] = []


def _apr1(_scheme: str, verifier: str, password: str) -> bool:
    from passlib.hash import apr_md5_crypt

    try:
        return bool(apr_md5_crypt.verify(password, verifier))
    except ValueError as error:
        raise UnknownScheme(str(error)) from None


def _plain(_scheme: str, kept: str, password: str) -> bool:
    return hmac.compare_digest(kept.encode(), password.encode())


def _digest(name: str, *, salted: bool = False) -> Callable[[str, str, str], bool]:
    size = hashlib.new(name).digest_size

    def check(scheme: str, kept: str, password: str) -> bool:
        try:
            is_hex = scheme.endswith(".HEX") or (not salted and len(kept) == 2 * size)
            octets = bytes.fromhex(kept) if is_hex else base64.b64decode(kept, validate=True)
        except ValueError:
            raise UnknownScheme(f"{{{scheme}}}: neither base64 nor hexadecimal") from None
        if len(octets) < size or (not salted and len(octets) > size):
            raise UnknownScheme(f"{{{scheme}}}: {len(octets)} octets")
        found = hashlib.new(name, password.encode() + octets[size:]).digest()
        return hmac.compare_digest(found, octets[:size])

    return check


def _scram(scheme: str, kept: str, password: str) -> bool:
    keys = parse_scram(kept)
    try:
        found = scram_keys(password, scheme.removeprefix("SCRAM-"), keys.iterations, keys.salt)
    except ValueError:
        return False
    return hmac.compare_digest(found.stored_key, keys.stored_key)


def _pbkdf2(_scheme: str, kept: str, password: str) -> bool:
    try:  # Dovecot: $1$salt$rounds$digest in hexadecimal, HMAC-SHA-1
        _, version, salt, rounds, digest = kept.split("$")
        wanted = bytes.fromhex(digest)
        found = hashlib.pbkdf2_hmac("sha1", password.encode(), salt.encode(), int(rounds), len(wanted))
    except (ValueError, OverflowError):
        raise UnknownScheme("{PBKDF2}: expected $1$salt$rounds$digest") from None
    return version == "1" and hmac.compare_digest(found, wanted)


_SCHEMES: dict[str, Callable[[str, str, str], bool]] = {
    "ARGON2": _argon2,
    "ARGON2ID": _argon2,
    "ARGON2I": _argon2,
    **dict.fromkeys(
        ("CRYPT", "SHA512-CRYPT", "SHA256-CRYPT", "BLF-CRYPT", "MD5-CRYPT", "DES-CRYPT"), _crypt
    ),
    "APR1": _apr1,
    **dict.fromkeys(("PLAIN", "CLEARTEXT", "CLEAR"), _plain),
    **dict.fromkeys(("SHA", "SHA1"), _digest("sha1")),
    "SHA256": _digest("sha256"),
    "SHA512": _digest("sha512"),
    **dict.fromkeys(("PLAIN-MD5", "LDAP-MD5"), _digest("md5")),
    "SSHA": _digest("sha1", salted=True),
    "SSHA256": _digest("sha256", salted=True),
    "SSHA512": _digest("sha512", salted=True),
    "SMD5": _digest("md5", salted=True),
    "SCRAM-SHA-1": _scram,
    "SCRAM-SHA-256": _scram,
    "PBKDF2": _pbkdf2,
}

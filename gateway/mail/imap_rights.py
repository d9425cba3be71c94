"""Rights of RFC 4314 as values: sets of letters, and how lists of them add up.

Owns      RIGHTS; parse_rights(), show_rights(), changed_rights(), effective_rights(), identifiers_of()
Errors    ValueError for letters that are no rights: a tagged BAD (RFC 4314 §3.1)
Standards RFC 4314 §2 (rights, identifiers, negative rights), §2.1.1 (the old rights "c" and "d")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

RIGHTS = "lrswipkxtea"  # in the order of RFC 4314 §2.1
ALL = frozenset(RIGHTS)
NONE: frozenset[str] = frozenset()
NEW = "texk"  # RFC 4314 §2.2: the capability RIGHTS= names what RFC 2086 did not have

ANYONE = "anyone"
AUTHENTICATED = "authenticated"  # the same to us: everybody whom we ask for rights has logged in

# RFC 4314 §2.1.1: the old right stands for all of these, and is shown with any of them.
_OLD = {"c": frozenset("kx"), "d": frozenset("te")}


def parse_rights(text: str) -> frozenset[str]:
    """Raises ValueError."""
    found: set[str] = set()
    for letter in text:
        if letter in ALL:
            found.add(letter)
        elif letter in _OLD:
            found |= _OLD[letter]
        else:
            raise ValueError(f'"{letter}" is no right: they are {RIGHTS}')
    return frozenset(found)


def show_rights(rights: Iterable[str], *, old: bool = False) -> str:
    """In the order of RIGHTS; old: with what RFC 2086 called them, for clients."""
    present = frozenset(rights)
    shown = "".join(letter for letter in RIGHTS if letter in present)
    if old:
        shown += "".join(letter for letter, members in _OLD.items() if members & present)
    return shown


def changed_rights(before: frozenset[str], how: str, rights: frozenset[str]) -> frozenset[str]:
    """how: "+" adds them, "-" takes them away, "" sets them (RFC 4314 §3.1)."""
    if how == "+":
        return before | rights
    return before - rights if how == "-" else rights


def identifiers_of(user: str) -> tuple[str, ...]:
    """Whatever in a list speaks of this user."""
    return user, ANYONE, AUTHENTICATED


def effective_rights(entries: Mapping[str, str], user: str) -> frozenset[str]:
    """What the user may: all that is granted to any of the identifiers, less all that is taken from any (§2)."""
    granted: set[str] = set()
    denied: set[str] = set()
    for identifier in identifiers_of(user):
        granted.update(entries.get(identifier, ""))
        denied.update(entries.get("-" + identifier, ""))
    return frozenset(granted - denied)

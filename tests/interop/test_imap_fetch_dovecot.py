"""FETCH: Dovecot answers the same about the same messages, real ones and odd ones."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from dovecot_imap import Dovecot
from imap.rig import ALICE, ImapClient, ImapGateway
from imap.test_imap_fetch import HTML, NESTED, SIMPLE
from interop_peers import need
from native.model_imap_fetch import tokens
from real_mail import real_mail

pytestmark = pytest.mark.interop
STEP = 60  # of the corpus

Both = tuple[ImapClient, Dovecot, list[bytes]]


def usable(content: bytes) -> bytes:
    """With CRLF, and without the line that mbox put in front."""
    content = b"\r\n".join(content.replace(b"\r", b"").replace(b"\0", b"").split(b"\n"))
    return content.partition(b"\r\n")[2] if content.startswith(b"From ") else content


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    need("/usr/lib/dovecot/imap")
    messages = [SIMPLE, NESTED, HTML, *map(usable, real_mail(STEP))]
    directory = tmp_path_factory.mktemp("dovecot")
    dovecot = Dovecot(directory / "peer", messages)
    with ImapGateway(directory / "own") as gateway:
        gateway.add_account(ALICE)
        gateway.deliver(ALICE, *messages)
        with gateway.login() as imap:
            imap.ok("EXAMINE INBOX")
            yield imap, dovecot, messages
    dovecot.close()


def value(response: list[bytes], label: str) -> bytes | None:
    """The value of the one item; a literal's octets.  b"" for NIL: Dovecot has no NIL for parts that are not there."""
    if not response:
        return None
    found = re.fullmatch(
        rb"\d+ FETCH \(%b (.*)\)" % re.escape(label.encode()), response[0], re.DOTALL
    )
    if found is None:
        return None
    rest = found[1]
    literal = re.match(rb"~?\{\d+\}\r\n", rest)
    return rest[literal.end() :] if literal else b"" if rest == b"NIL" else rest


WHOLE = (
    "RFC822.SIZE", "BODY[]", "BODY[HEADER]", "BODY[TEXT]", "RFC822", "RFC822.HEADER", "RFC822.TEXT", "BODY[1.MIME]",
    "BODY[HEADER.FIELDS (FROM TO RECEIVED)]", "BODY[HEADER.FIELDS.NOT (FROM TO RECEIVED)]", "BODY[]<10>",
    "BODY[TEXT]<3>", "BODY[HEADER]<70>", "BODY[HEADER.FIELDS (RECEIVED)]<5>",
)  # fmt: skip


@pytest.mark.parametrize("label", WHOLE)
def test_messages(both: Both, label: str) -> None:
    imap, dovecot, messages = both
    item = label.replace(">", ".9999>")
    for ours, theirs in zip(
        imap.ok(f"FETCH 1:* {item}"), dovecot.ok(f"FETCH 1:* {item}"), strict=True
    ):
        assert ours == theirs
    assert len(imap.ok(f"FETCH 1:* {item}")) == len(messages)


def paths(structure: list, prefix: str = "", number: int = 0) -> Iterator[tuple[str, list]]:  # type: ignore[type-arg]
    """(section number, its structure) of each part, as RFC 9051 §6.4.5.1 numbers them."""
    if isinstance(structure[0], list):
        for at, part in enumerate(
            p for p in structure if isinstance(p, list) and isinstance(p[0], bytes | list)
        ):
            if at >= next(n for n, p in enumerate(structure) if not isinstance(p, list)):
                break
            yield from paths(part, f"{prefix}{at + 1}", at + 1)
    else:
        own = prefix or "1"
        yield own, structure
        if structure[0].upper() == b'"MESSAGE"' and isinstance(structure[7], list):
            inner = structure[8]
            yield from paths(inner, own + "." if isinstance(inner[0], list) else own + ".1")


def test_parts(both: Both) -> None:
    """Each part that BODYSTRUCTURE names: its octets, its MIME header, a piece of it, and what is encoded in it."""
    imap, dovecot, messages = both
    compared = 0
    for number in range(1, len(messages) + 1):
        if messages[number - 1] == NESTED:
            continue  # Dovecot leaves the line end of a boundary to a message that ends with a multipart
        (items,) = tokens(imap.ok(f"FETCH {number} BODYSTRUCTURE")[0].partition(b" FETCH ")[2])
        for path, structure in paths(items[1]):
            for label in (
                f"BODY[{path}]",
                f"BODY[{path}.MIME]",
                f"BODY[{path}]<7>",
                f"BINARY[{path}]",
            ):
                item = label.replace(">", ".80>")
                ours, theirs = (
                    value(client.cmd(f"FETCH {number} ({item})")[0], label)
                    for client in (imap, dovecot)
                )
                assert ours == theirs, (number, item)
                compared += 1
            if structure[0] == b'"MESSAGE"' and path != "1":
                for label in (f"BODY[{path}.HEADER]", f"BODY[{path}.TEXT]"):
                    ours, theirs = (
                        value(client.cmd(f"FETCH {number} ({label})")[0], label)
                        for client in (imap, dovecot)
                    )
                    assert ours == theirs, (number, label)
    assert compared > 4 * len(messages)


def normal(tree: list) -> list:  # type: ignore[type-arg]
    """Words in one case; strings as they are meant; white space where a line was folded counts once."""
    found = []
    for one in tree:
        if isinstance(one, list):
            found.append(normal(one))
            continue
        literal = re.match(rb"\{\d+\}\r\n", one)
        octets = (
            one[literal.end() :]
            if literal
            else re.sub(rb"\\(.)", rb"\1", one[1:-1])
            if one[:1] == b'"'
            else one
        )
        found.append(re.sub(rb"[ \t]+", b" ", octets).replace(b"\t", b"").lower())
    if found[:1] == [b"text"]:  # Dovecot always names a charset
        given = found[2] if isinstance(found[2], list) else []
        found[2] = given if b"charset" in given else [*given, b"charset", b"us-ascii"]
    return found


@pytest.mark.parametrize("item", ["ENVELOPE", "BODY", "BODYSTRUCTURE"])
def test_structures(both: Both, item: str) -> None:
    imap, dovecot, messages = both
    different = []
    for number in range(1, len(messages) + 1):
        if messages[number - 1] == NESTED:
            continue
        ours, theirs = (
            str(normal(tokens(client.ok(f"FETCH {number} {item}")[0].partition(b" FETCH ")[2])))
            for client in (imap, dovecot)
        )
        if ours != theirs:
            different.append(number)
    # Dovecot joins fields that are repeated, and reads broken addresses in another way.
    assert len(different) <= (len(messages) // 30 if item == "ENVELOPE" else 0), different

"""FETCH in all its forms, over a real connection, beside a slow model of each item."""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from imap.rig import MESSAGE, ImapClient, ImapGateway

from gateway.store.names import account_directory

NESTED = b"""From: =?utf-8?q?J=C3=B6rg?= <joerg@example.org>\r
Message-ID: <nested@example.org>\r
References: <root@example.org> <middle@example.org>\r
Subject: nested\r
Content-Type: multipart/mixed; boundary=outer\r
\r
preamble\r
--outer\r
\r
Plain text for you\r
--outer\r
Content-Type: message/rfc822\r
Content-Description: forwarded\r
\r
Subject: inner\r
X-Long: folded\r
 line\r
Content-Type: multipart/alternative; boundary=inner\r
\r
--inner\r
Content-Type: text/plain; charset=utf-8\r
Content-Transfer-Encoding: quoted-printable\r
\r
caf=C3=A9=\r
 noir\r
--inner\r
Content-Type: text/html\r
\r
<p>caf&eacute;</p>\r
--inner--\r
--outer\r
Content-Type: application/octet-stream\r
Content-Transfer-Encoding: base64\r
\r
AAECAwQF\r
--outer\r
Content-Type: application/octet-stream\r
Content-Transfer-Encoding: x-unknown\r
\r
???\r
--outer\r
Content-Type: message/rfc822\r
\r
Subject: leaf\r
\r
only text\r
--outer--\r
"""
SIMPLE = MESSAGE
HTML = b"Content-Type: text/html\r\n\r\n<style>p {}</style><p>Dear\r\n <b>reader</b> &amp; friend</p>\r\n"
BASE64_LINES = (b"QUJD" * 18 + b"\r\n") * 40_000
LARGE = (
    b"Subject: large\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: text/plain\r\n\r\nsmall part\r\n"
    b"--b\r\nContent-Transfer-Encoding: base64\r\n\r\n" + BASE64_LINES + b"--b--\r\n"
)


@pytest.fixture(scope="module")
def imap(gateway: ImapGateway) -> Iterator[ImapClient]:
    gateway.add_account("fetch@example.test")
    gateway.deliver("fetch@example.test", SIMPLE, NESTED, HTML, LARGE)
    with gateway.login("fetch@example.test") as client:
        client.ok("SELECT INBOX")
        yield client


def value(imap: ImapClient, number: int, item: str, label: str = "") -> bytes | None:
    """The octets of the one literal (or nstring) of the answer."""
    (response,) = [r for r in imap.ok(f"FETCH {number} ({item})") if b" FETCH (FLAGS" not in r]
    prefix = f"{number} FETCH ({label or item.replace('.PEEK', '')} ".encode()
    assert response.startswith(prefix) and response.endswith(b")"), response[:200]
    rest = response[len(prefix) : -1]
    if rest == b"NIL":
        return None
    head, _, octets = rest.partition(b"\r\n")
    found = re.fullmatch(rb"~?\{(\d+)\}", head)
    if found is None:
        return rest
    assert int(found[1]) == len(octets)
    return octets


def test_whole_messages_and_their_halves(imap: ImapClient) -> None:
    for number, content in enumerate((SIMPLE, NESTED, HTML, LARGE), 1):
        header, _, text = content.partition(b"\r\n\r\n")
        header += b"\r\n\r\n"
        assert value(imap, number, "BODY.PEEK[]") == content
        assert value(imap, number, "BODY.PEEK[HEADER]") == header
        assert value(imap, number, "BODY.PEEK[TEXT]") == text
        assert value(imap, number, "RFC822.HEADER") == header
        assert value(imap, number, "BINARY.PEEK[]") == content
        for start, count in (
            (0, 10),
            (5, 70),
            (len(header) - 3, 9),
            (len(content) - 2, 10),
            (len(content), 1),
            (10**9, 5),
        ):
            partial = content[start : start + count]
            assert (
                value(imap, number, f"BODY.PEEK[]<{start}.{count}>", f"BODY[]<{start}>") == partial
            )
            assert (
                value(imap, number, f"BODY.PEEK[TEXT]<{start}.{count}>", f"BODY[TEXT]<{start}>")
                == text[start : start + count]
            )
        assert value(imap, number, "BODY.PEEK[HEADER]<3.8>", "BODY[HEADER]<3>") == header[3:11]


def between(start: bytes, end: bytes, content: bytes = NESTED) -> bytes:
    at = content.index(start)
    return content[at : content.index(end, at)]


INNER = between(b"Subject: inner", b"\r\n--outer\r\nContent-Type: application")
SECTIONS = {
    "1": b"Plain text for you",
    "1.MIME": b"\r\n",
    "2": INNER,
    "2.MIME": b"Content-Type: message/rfc822\r\nContent-Description: forwarded\r\n\r\n",
    "2.HEADER": INNER.partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "2.TEXT": INNER.partition(b"\r\n\r\n")[2],
    "2.1": b"caf=C3=A9=\r\n noir",
    "2.1.MIME": between(b"Content-Type: text/plain; charset", b"caf="),
    "2.2": b"<p>caf&eacute;</p>",
    "2.HEADER.FIELDS (X-LONG SUBJECT)": b"Subject: inner\r\nX-Long: folded\r\n line\r\n\r\n",
    "2.HEADER.FIELDS.NOT (SUBJECT CONTENT-TYPE)": b"X-Long: folded\r\n line\r\n\r\n",
    "3": b"AAECAwQF",
    "4": b"???",
    "5": b"Subject: leaf\r\n\r\nonly text",
    "5.1": b"only text",
    "5.HEADER": b"Subject: leaf\r\n\r\n",
    "5.TEXT": b"only text",
    "1.HEADER": None,
    "1.1": None,
    "3.TEXT": None,
    "2.3": None,
    "6": None,
    "5.1.1": None,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_sections(imap: ImapClient, section: str) -> None:
    expected = SECTIONS[section]
    assert value(imap, 2, f"BODY.PEEK[{section}]") == expected
    if expected is not None:
        assert value(imap, 2, f"BODY.PEEK[{section}]<2.5>", f"BODY[{section}]<2>") == expected[2:7]


def test_the_only_part_of_a_simple_message(imap: ImapClient) -> None:
    assert value(imap, 1, "BODY.PEEK[1]") == b"Hello\r\n"
    assert value(imap, 1, "BODY.PEEK[1.MIME]") == SIMPLE[: SIMPLE.index(b"Hello")]
    assert value(imap, 1, "BODY.PEEK[2]") is None


def test_header_fields(imap: ImapClient) -> None:
    fields = "BODY.PEEK[HEADER.FIELDS (from Subject X-None)]"
    assert value(imap, 1, fields, "BODY[HEADER.FIELDS (FROM SUBJECT X-NONE)]") == (
        b"From: Ann <ann@example.org>\r\nSubject: one\r\n\r\n"
    )
    assert value(imap, 1, "BODY.PEEK[HEADER.FIELDS.NOT (FROM)]") == (
        b"To: alice@example.test\r\nSubject: one\r\n\r\n"
    )
    assert (
        value(imap, 1, "BODY.PEEK[HEADER.FIELDS (FROM)]<3.5>", "BODY[HEADER.FIELDS (FROM)]<3>")
        == b"m: An"
    )
    assert value(imap, 4, "BODY.PEEK[HEADER.FIELDS (SUBJECT)]") == b"Subject: large\r\n\r\n"


def test_binary(imap: ImapClient) -> None:
    assert value(imap, 2, "BINARY.PEEK[3]") == bytes(range(6))
    assert value(imap, 2, "BINARY.PEEK[3]<1.2>", "BINARY[3]<1>") == b"\1\2"
    assert value(imap, 2, "BINARY.PEEK[2.1]") == "café noir".encode()
    assert value(imap, 2, "BINARY.SIZE[3]") == b"6"
    assert value(imap, 2, "BINARY.SIZE[2.1]") == b"10"
    assert value(imap, 2, "BINARY.SIZE[2]") == b"%d" % len(INNER)
    assert b"~{6}\r\n" in imap.ok("FETCH 2 BINARY.PEEK[3]")[0]
    untagged, tagged = imap.cmd("FETCH 2 (UID BINARY.PEEK[4])")
    assert tagged.startswith(b"NO [UNKNOWN-CTE]") and untagged == [b"2 FETCH (UID 2 BINARY[4] NIL)"]


def test_a_large_message_goes_out_in_slices(imap: ImapClient, gateway: ImapGateway) -> None:
    decoded = b"ABC" * 18 * 40_000
    assert value(imap, 4, "BODY.PEEK[2]") == BASE64_LINES[:-2]
    assert value(imap, 4, "BODY.PEEK[1]") == b"small part"
    assert value(imap, 4, "BINARY.PEEK[2]") == decoded
    assert (
        value(imap, 4, "BINARY.PEEK[2]<1000001.7>", "BINARY[2]<1000001>")
        == decoded[1000001:1000008]
    )
    assert value(imap, 4, "BINARY.SIZE[2]") == b"%d" % len(decoded)
    (answer,) = imap.ok(
        "UID FETCH 4 (FLAGS BODY.PEEK[1] BODY.PEEK[]<0.7> PREVIEW BODY.PEEK[2.MIME] BODY.PEEK[9])"
    )
    assert answer.startswith(b'4 FETCH (UID 4 FLAGS (\\Recent) PREVIEW "small part" BODY[2.MIME] {')
    assert answer.endswith(b" BODY[1] {10}\r\nsmall part BODY[]<0> {7}\r\nSubject BODY[9] NIL)")
    (folder,) = (
        account_directory(gateway.config.store_dir, "fetch@example.test") / "large"
    ).iterdir()
    octets = bytearray(folder.read_bytes())
    octets[1_000_000] ^= 1
    folder.write_bytes(octets)
    untagged, tagged = imap.cmd("FETCH 4 BODY.PEEK[]")  # found out before the first octet is sent
    assert untagged == [] and tagged.startswith(b"NO [")
    octets[1_000_000] ^= 1
    folder.write_bytes(octets)
    assert value(imap, 4, "BODY.PEEK[]") == LARGE


def test_previews(imap: ImapClient) -> None:
    assert value(imap, 1, "PREVIEW") == b'"Hello"'
    assert value(imap, 2, "PREVIEW") == b'"Plain text for you"'
    assert value(imap, 3, "PREVIEW (LAZY)", "PREVIEW") == b'"Dear reader & friend"'
    imap.bad("FETCH 1 PREVIEW (EAGER)")


def test_structures(imap: ImapClient) -> None:
    (response,) = imap.ok("FETCH 2 (BODY BODYSTRUCTURE)")
    assert response.count(b'"MESSAGE" "RFC822"') == 4
    assert b'"ALTERNATIVE" ("boundary" "inner")' in response and b'"ALTERNATIVE")' in response
    (envelope,) = imap.ok("FETCH 2 ENVELOPE")
    assert b'(("=?utf-8?q?J=C3=B6rg?=" NIL "joerg" "example.org"))' in envelope


def test_ids_and_dates(imap: ImapClient) -> None:
    (first,) = imap.ok("FETCH 1 (EMAILID THREADID SAVEDATE INTERNALDATE)")
    (again,) = imap.ok("FETCH 1 (EMAILID THREADID SAVEDATE INTERNALDATE)")
    assert first == again
    date = rb'"[ 123]\d-[A-Z][a-z]{2}-\d{4} \d\d:\d\d:\d\d \+0000"'
    assert re.fullmatch(
        rb"1 FETCH \(EMAILID \(M[-\w]+\) THREADID \(T[0-9a-f]{16}\) SAVEDATE "
        + date
        + rb" INTERNALDATE "
        + date
        + rb"\)",
        first,
    )
    assert first != imap.ok("FETCH 2 (EMAILID THREADID SAVEDATE INTERNALDATE)")[0]


def test_macros(imap: ImapClient) -> None:
    for macro, words in (
        ("FAST", rb"FLAGS \(.*\) INTERNALDATE .* RFC822.SIZE \d+"),
        ("ALL", rb"FLAGS \(.*\) INTERNALDATE .* RFC822.SIZE \d+ ENVELOPE \(.*\)"),
        ("full", rb"FLAGS \(.*\) INTERNALDATE .* RFC822.SIZE \d+ ENVELOPE \(.*\) BODY \(.*\)"),
    ):
        (response,) = imap.ok(f"FETCH 1 {macro}")
        assert re.fullmatch(rb"1 FETCH \(" + words + rb"\)", response)
    imap.bad("FETCH 1 (FULL)")


def test_what_is_read_becomes_seen(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *[SIMPLE] * 3)
    with gateway.login(account) as imap:
        imap.ok("EXAMINE INBOX")
        imap.ok("FETCH 1:* BODY[]")
        imap.ok("SELECT INBOX")
        imap.ok("FETCH 1:* (BODY.PEEK[] RFC822.HEADER)")
        assert imap.ok("SEARCH SEEN") == [b"SEARCH"]
        untagged = imap.ok("FETCH 2 RFC822")
        assert untagged[0].startswith(b"2 FETCH (RFC822 {") and untagged[1].startswith(
            b"2 FETCH (FLAGS (\\Seen"
        )
        untagged = imap.ok("UID FETCH 1:* (BODY[TEXT])")
        assert [u.split()[0] for u in untagged if b"FLAGS" in u] == [b"1", b"3"]
        assert imap.ok("SEARCH SEEN") == [b"SEARCH 1 2 3"]


def test_changed_since_partial_and_vanished(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *[SIMPLE] * 10)
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        status = imap.ok("STATUS INBOX (HIGHESTMODSEQ)")[-1]
        modseq = int(re.search(rb"HIGHESTMODSEQ (\d+)", status)[1])
        imap.ok("STORE 3,7 +FLAGS (\\Flagged)")
        found = imap.ok(f"UID FETCH 1:* (FLAGS) (CHANGEDSINCE {modseq})")
        assert [u.partition(b" ")[0] for u in found if b"FETCH" in u] == [b"3", b"7"]
        assert all(b"MODSEQ (" in u for u in found if b"FETCH" in u)

        def uids(partial: str) -> list[int]:
            return [
                int(u.split()[3][:-1]) for u in imap.ok(f"UID FETCH 1:* (UID) (PARTIAL {partial})")
            ]

        assert uids("1:3") == [1, 2, 3]
        assert uids("9:20") == [9, 10]
        assert uids("-1:-2") == [9, 10]
        assert uids("-9:-30") == [1, 2]
        assert uids("11:12") == []
        imap.bad("UID FETCH 1:* UID (PARTIAL -1:2)")
        imap.bad("FETCH 1:* UID (PARTIAL 1:2)")
        imap.bad("UID FETCH 1:* UID (VANISHED)")
        imap.bad("UID FETCH 1:* UID (CHANGEDSINCE 1 VANISHED)")
        imap.ok("ENABLE QRESYNC")
        imap.ok("STORE 10 +FLAGS (\\Deleted)")
        imap.ok("EXPUNGE")
        found = imap.ok(f"UID FETCH 1:100 (FLAGS) (CHANGEDSINCE {modseq} VANISHED)")
        assert found[0] == b"VANISHED (EARLIER) 10"


def test_what_was_expunged_meanwhile(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, *[SIMPLE] * 3)
    with gateway.login(account) as imap, gateway.login(account) as other:
        imap.ok("SELECT INBOX")
        other.ok("SELECT INBOX")
        other.ok("STORE 2 +FLAGS.SILENT (\\Deleted)")
        other.ok("EXPUNGE")
        untagged, tagged = imap.cmd("FETCH 1:3 (BODY.PEEK[] UID)")
        assert [u.partition(b" ")[0] for u in untagged if b"BODY" in u] == [b"1", b"3"]
        assert tagged.startswith(b"NO [EXPUNGEISSUED]")
        untagged = imap.ok("NOOP")
        assert b"2 EXPUNGE" in untagged


def test_uid_only(gateway: ImapGateway, account: str) -> None:
    gateway.deliver(account, SIMPLE)
    with gateway.login(account) as imap:
        imap.ok("ENABLE UIDONLY")
        imap.ok("SELECT INBOX")
        assert imap.ok("UID FETCH 1 (RFC822.SIZE)") == [
            b"1 UIDFETCH (RFC822.SIZE %d)" % len(SIMPLE)
        ]
        assert imap.bad("FETCH 1 FLAGS").startswith(b"BAD [UIDREQUIRED]")


@pytest.mark.parametrize(
    "wrong",
    ["", " 1", " 1 ()", " 1 (X)", " 1 BODY[", " 1 BODY[X]", " 1 BODY[MIME]", " 1 BODY[0]", " 1 BODY[1.]",
     " 1 BODY[HEADER.FIELDS ()]", " 1 BODY[HEADER.FIELDS]", " 1 BODY[]<1>", " 1 BODY[]<1.0>", " 1 BINARY[HEADER]",
     " 1 (FLAGS", " 1 FLAGS (X)", " 1 FLAGS (CHANGEDSINCE 1", " x FLAGS", " 0 FLAGS", " 1 FLAGS UID", " 9 FLAGS"],
)  # fmt: skip
def test_syntax(imap: ImapClient, gateway: ImapGateway, wrong: str) -> None:
    with gateway.login("fetch@example.test") as client:
        client.ok("EXAMINE INBOX")
        client.bad("FETCH" + wrong)


def test_sections_agree_with_another_parser(imap: ImapClient) -> None:
    """Python's: what it holds to be the parts, and what they say."""
    message = email.message_from_bytes(NESTED, policy=email.policy.SMTP)
    for number, part in enumerate(message.iter_parts(), 1):
        if part.is_multipart() or part.get("Content-Transfer-Encoding") == "x-unknown":
            continue
        decoded = value(imap, 2, f"BINARY.PEEK[{number}]")
        assert decoded == part.get_payload(decode=True)


def test_many_messages_in_windows(gateway: ImapGateway, account: str, tmp_path: Path) -> None:
    body = b"x" * 78 + b"\r\n"
    contents = [b"Subject: %d\r\n\r\n%b" % (n, body * (n * 37 % 900)) for n in range(120)]
    gateway.deliver(account, *contents)
    with gateway.login(account) as imap:
        imap.ok("SELECT INBOX")
        answers = imap.ok("FETCH 1:* (BODY[])")
        bodies = [a for a in answers if b"(BODY[]" in a]
        assert bodies == [
            b"%d FETCH (BODY[] {%d}\r\n%b)" % (n, len(c), c) for n, c in enumerate(contents, 1)
        ]
        assert len(imap.ok("SEARCH SEEN")[0].split()) == 121
        sparse = imap.ok("FETCH 3,5:7,100 (RFC822.SIZE BODY.PEEK[TEXT]<0.1>)")
        assert [int(a.split()[0]) for a in sparse] == [3, 5, 6, 7, 100]

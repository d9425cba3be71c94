"""URLFETCH in the forms of RFC 5524, submit+ URLs, and the forms of URLs that CATENATE takes."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import pytest
from imap.rig import ALICE, BOB, ImapClient, ImapGateway
from imap.test_imap_urlauth import made

from gateway.mail.part_structure import part_structure

SUBMITTER = "submit@example.test"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
PARTS = (
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    b"gr=C3=BC=C3=9Fe=\r\n!\r\nline\r\n",
    b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(PNG),
    b"Content-Type: text/plain\r\n\r\nplain",
    b"Content-Type: text/x\r\nContent-Transfer-Encoding: x-odd\r\n\r\n?",
    b"Content-Type: message/rfc822\r\n\r\nSubject: in\r\nContent-Type: multipart/mixed; boundary=bb\r\n\r\n"
    b"--bb\r\n\r\nfirst\r\n--bb\r\nContent-Type: text/html\r\n\r\n<p>\r\n--bb--\r\n",
)
MAIL = b"Subject: parts\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=aa\r\n\r\n" + b"".join(
    b"--aa\r\n" + part + b"\r\n" for part in PARTS
) + b"--aa--\r\n"
GREETING = "grüße!\r\nline\r\n".encode()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImapGateway]:
    config = f'[imap]\nsubmit_users = ["{SUBMITTER}"]\n'
    with ImapGateway(tmp_path_factory.mktemp("imap"), config) as running:
        running.add_account(ALICE, BOB, SUBMITTER)
        running.deliver(ALICE, MAIL)
        yield running


@pytest.fixture
def imap(gateway: ImapGateway) -> Iterator[ImapClient]:
    with gateway.login(ALICE) as client:
        yield client


def url(imap: ImapClient, section: str = "", access: str = "authuser") -> str:
    return made(imap, f"imap://alice%40example.test@mx.example.test/INBOX/;UID=1{section};URLAUTH={access}")


def fetched(imap: ImapClient, one: str, forms: str) -> bytes:
    """What comes behind the URL."""
    [line] = imap.ok(f'URLFETCH ("{one}"{forms and " " + forms})')
    prefix = f'URLFETCH "{one}" '.encode()
    assert line.startswith(prefix), line
    return line[len(prefix) :]


def test_decoded_parts(imap: ImapClient) -> None:
    assert b"URLAUTH=BINARY" in imap.ok("CAPABILITY")[0].split()
    text, image, plain = (url(imap, f"/;SECTION={number}") for number in (1, 2, 3))
    assert fetched(imap, text, "BINARY") == b"(BINARY {%d}\r\n%b)" % (len(GREETING), GREETING)
    assert fetched(imap, image, "BINARY") == b"(BINARY ~{%d}\r\n%b)" % (len(PNG), PNG)
    assert fetched(imap, plain, "BINARY") == b"(BINARY {5}\r\nplain)"
    assert fetched(imap, plain, "") == b"{5}\r\nplain"
    assert fetched(imap, plain, "BODY") == b"(BODY {5}\r\nplain)"
    partial = url(imap, "/;SECTION=1/;PARTIAL=2.4")  # of what was decoded
    assert fetched(imap, partial, "BINARY") == b"(BINARY {4}\r\n" + GREETING[2:6] + b")"
    assert fetched(imap, partial, "BODY") == b"(BODY {4}\r\n=C3=)"
    whole = url(imap)
    assert fetched(imap, whole, "BINARY") == b"(BINARY {%d}\r\n%b)" % (len(MAIL), MAIL)
    fields = url(imap, "/;SECTION=HEADER.FIELDS%20(SUBJECT)/;PARTIAL=0.7")
    assert fetched(imap, fields, "BINARY") == b"(BINARY {7}\r\nSubject)"


def test_structures(imap: ImapClient) -> None:
    imap.ok("SELECT INBOX")
    [line] = imap.ok("FETCH 1 BODYSTRUCTURE")
    structure = line.removeprefix(b"1 (BODYSTRUCTURE ").removeprefix(b"1 FETCH (BODYSTRUCTURE ")[:-1]
    assert fetched(imap, url(imap), "BODYPARTSTRUCTURE") == b"(BODYPARTSTRUCTURE %b)" % structure
    for path in ((1,), (2,), (5,), (5, 1), (5, 2)):
        found = part_structure(structure, path)
        assert found is not None and found in structure
        section = ".".join(map(str, path))
        told = fetched(imap, url(imap, f"/;SECTION={section}"), "BODYPARTSTRUCTURE")
        assert told == b"(BODYPARTSTRUCTURE %b)" % found
    assert found.startswith(b'("TEXT" "HTML" ')
    both = fetched(imap, url(imap, "/;SECTION=2"), "BODYPARTSTRUCTURE BINARY")
    structure_told, _, octets = both.partition(b") (BINARY ~")
    assert octets == b"{%d}\r\n%b)" % (len(PNG), PNG)
    assert re.match(rb'\(BODYPARTSTRUCTURE \("IMAGE" "PNG" \S+ NIL NIL "BINARY" %d ' % len(PNG), structure_told)
    both = fetched(imap, url(imap, "/;SECTION=1"), "BINARY BODYPARTSTRUCTURE")
    assert b' "BINARY" %d 2 ' % len(GREETING) in both and both.endswith(GREETING + b")")


def test_what_cannot_be_decoded_is_nil_alone(imap: ImapClient) -> None:
    odd = url(imap, "/;SECTION=4")
    assert fetched(imap, odd, "BINARY") == b"(BINARY NIL)"
    told = fetched(imap, odd, "BINARY BODYPARTSTRUCTURE")
    assert told.startswith(b'(BODYPARTSTRUCTURE ("TEXT" "X" ') and told.endswith(b") (BINARY NIL)")
    assert fetched(imap, odd, "BODY") == b"(BODY {1}\r\n?)"
    for section in ("9", "1.1"):
        assert fetched(imap, url(imap, f"/;SECTION={section}"), "BINARY BODYPARTSTRUCTURE") == b"NIL"
    for forms in ("BODY BINARY", "BINARY BINARY", "OTHER", "BODY."):
        imap.bad(f'URLFETCH ("{odd}" {forms})')
    lines = imap.ok(f'URLFETCH "{odd}" ("{odd}" BODY) ("nonsense" BODY)')
    assert [line.rpartition(b'" ')[2] for line in lines] == [b"{1}\r\n?", b"(BODY {1}\r\n?)", b"NIL"]


def test_a_large_part_is_decoded_as_it_is_sent(gateway: ImapGateway, imap: ImapClient) -> None:
    octets = bytes(range(256)) * 12_000
    encoded = base64.encodebytes(octets).replace(b"\n", b"\r\n")
    mail = b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n" + encoded
    gateway.deliver(ALICE, mail, mailbox="large")
    rump = "imap://alice%40example.test@mx.example.test/large/;UID=1/;SECTION=1"
    one = made(imap, f"{rump};URLAUTH=authuser")
    told = fetched(imap, one, "BINARY BODYPARTSTRUCTURE")
    assert b'"BINARY" %d ' % len(octets) in told
    assert told.endswith(b"(BINARY ~{%d}\r\n%b)" % (len(octets), octets))
    one = made(imap, f"{rump}/;PARTIAL=2000001.70000;URLAUTH=authuser")
    assert fetched(imap, one, "BINARY") == b"(BINARY ~{70000}\r\n%b)" % octets[2_000_001:2_070_001]


def test_submission_servers_alone_fetch_what_is_theirs(gateway: ImapGateway, imap: ImapClient) -> None:
    one = url(imap, "/;SECTION=3", f"submit+{ALICE}")
    for account, wanted in ((SUBMITTER, b"{5}\r\nplain"), (BOB, b"NIL"), (ALICE, b"NIL")):
        with gateway.login(account) as client:
            assert fetched(client, one, "") == wanted, account


# -- CATENATE --------------------------------------------------------------------------------------------------------


def test_the_forms_of_urls_that_catenate_takes(gateway: ImapGateway, imap: ImapClient) -> None:
    gateway.deliver(ALICE, b"Subject: far\r\n\r\nfar\r\n", mailbox="Entwürfe/a b")
    far = "Entw%C3%BCrfe/a%20b"
    uidvalidity = int(re.findall(rb"\d+", imap.ok("STATUS INBOX (UIDVALIDITY)")[0])[0])
    part = b"plain"
    forms = {
        "/INBOX/;UID=1/;SECTION=3": part,
        f"/INBOX;UIDVALIDITY={uidvalidity}/;UID=1/;SECTION=3": part,
        f"/inbox;uidvalidity={uidvalidity}/;uid=1/;section=3": part,
        "INBOX/;UID=1/;SECTION=3": part,
        "imap://alice%40example.test@mx.example.test/INBOX/;UID=1/;SECTION=3": part,
        "imap://alice%40example.test;AUTH=*@mx.example.test:143/INBOX/;UID=1/;SECTION=3": part,
        "/INBOX/;UID=1/;SECTION=3/;PARTIAL=1.2": b"la",
        "/INBOX/;UID=1/;SECTION=3/;PARTIAL=2": b"ain",
        "/INBOX/;UID=1/;SECTION=HEADER.FIELDS%20(SUBJECT)": b"Subject: parts\r\n\r\n",
        "/INBOX/;UID=1/;SECTION=5.HEADER": PARTS[4].split(b"\r\n\r\n")[1] + b"\r\n\r\n",
        "/INBOX/;UID=1": MAIL,
        f"/{far}/;UID=1/;SECTION=TEXT": b"far\r\n",
        ";UID=1/;SECTION=3": part,
        "/;UID=1/;SECTION=3": part,
    }
    imap.ok("EXAMINE INBOX")
    for form in forms:
        imap.ok(f'APPEND Drafts CATENATE (TEXT {{1+}}\r\n<URL "{form}" TEXT {{1+}}\r\n>)'.replace("<U", "< U"))
    imap.ok("SELECT Drafts")
    lines = imap.ok("FETCH 1:* BODY.PEEK[]")
    for line, (form, octets) in zip(lines, forms.items(), strict=True):
        assert line.endswith(b"\r\n<" + octets + b">)"), form
    for form in (
        f"/INBOX;UIDVALIDITY={uidvalidity + 1}/;UID=1", "/INBOX/;UID=2", "/INBOX/;UID=1/;SECTION=9", "/INBOX/;UID=0",
        "imap://bob%40example.test@mx.example.test/INBOX/;UID=1", "/nowhere/;UID=1", "/INBOX", "http://x/INBOX/;UID=1",
        "",
    ):  # fmt: skip
        tagged = imap.no(b'APPEND Drafts CATENATE (URL "%b")' % form.encode())
        assert tagged.startswith(b'NO [BADURL "%b"] ' % form.encode()), form

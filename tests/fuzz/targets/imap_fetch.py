"""FETCH: whatever a message looks like, its responses are whole, and say what the slow way says."""

from __future__ import annotations

import contextlib

from gateway._native import (
    FETCH_BODY,
    FETCH_FIELDS,
    FETCH_PAIR,
    FETCH_SECTION,
    FetchFormat,
    HeaderFields,
    ImapReader,
    ImapSyntaxError,
    body_of,
)
from gateway.mail.imap_facts import BODYSTRUCTURE, ENVELOPE, message_facts, part_places, section
from gateway.mail.sections import cut, preview, section_range
from gateway.protocol.imap.fetch import fetch_request
from gateway.protocol.imap.url import BadUrl, message_url
from tests.fuzz.octets import options
from tests.native import model_imap_fetch as model

MAX_OCTETS = 1000
RUNS = 1500
CODE = ("gateway.protocol.imap.fetch", "gateway.protocol.imap.url", "gateway.mail.sections")
RECORD = bytes(48)
WORDS = (
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n",
    b"Content-Type: message/rfc822\r\n\r\n",
    b"\r\n--b--\r\n",
    b"Content-Type: text/html\r\n\r\n",
    b"Content-Transfer-Encoding: base64\r\n",
    b"Subject: x\r\n",
    b"From: a\r\n b\r\n",
    b"BODY.PEEK[1.2.HEADER.FIELDS.NOT (A B)]<1.2>",
    b"BINARY.SIZE[1]",
    b"(CHANGEDSINCE 1 PARTIAL -1:-2)",
    b"imap://u@h/INBOX;UIDVALIDITY=1/;UID=2/;SECTION=1.MIME/;PARTIAL=1.2;URLAUTH=user+a:internal:",
    b'("TEXT" "PLAIN" NIL NIL NIL "7BIT" 1 1)',
    b"{3}\r\na)b",
)


def seeds() -> list[bytes]:
    inner = WORDS[1] + b"Subject: in\r\n\r\nx\r\n--b\r\n"
    return [
        b"\0Subject: x\r\n" + WORDS[0] + inner + WORDS[3] + b"<p>" + WORDS[2],
        b"\1(UID " + WORDS[7] + b") " + WORDS[9],
        b"\2" + WORDS[10],
        b"\3(" + WORDS[11] * 2 + b' "x")',
    ]


def check(data: bytes) -> None:
    (what,), octets = options(data, 1)
    (_message, _request, _url, _structure)[what % 4](octets)


def _message(content: bytes) -> None:
    facts = message_facts(content).packed
    places = part_places(facts)
    top = places[0]
    header, body = content[: top.body_start], content[top.body_start :]
    fields = HeaderFields([b"SUBJECT", b"from"], bool(len(content) & 1))
    wanted = FetchFormat(
        [
            (b"ENVELOPE", FETCH_SECTION, 0, ENVELOPE, -1, 0),
            (b"BODY", FETCH_BODY, 0, None, -1, 0),
            (b"H", FETCH_FIELDS, 1, fields, -1, 0),
            (b"B", FETCH_PAIR, 1, None, 3, 7),
        ]
    )
    structure = section(facts, BODYSTRUCTURE)
    cut_fields = model.fields(header, [b"SUBJECT", b"from"], bool(len(content) & 1))
    assert wanted.format(RECORD, 1, [[facts], [header], [body]]) == (
        b"* 1 FETCH (ENVELOPE %b BODY %b H %b B %b)\r\n"
        % (
            section(facts, ENVELOPE),
            body_of(structure),
            model.literal(cut_fields),
            model.literal(content, 3, 7),
        )
    )
    (tree,) = model.tokens(structure)
    assert isinstance(tree, list)
    assert model.tokens(body_of(structure)) == [model.body(tree)]
    for path in ((1,), (2,), (1, 1), (2, 1), (1, 2, 1)):
        for text in (b"", b"MIME", b"HEADER", b"TEXT"):
            found = section_range(places, path, text)
            if found is not None:
                assert 0 <= found[0] <= found[1] <= len(content)
                assert bytes(cut(header, body, *found)) == content[slice(*found)]
    assert len(preview(content)) <= 200


def _request(text: bytes) -> None:
    reader = ImapReader(4096)
    reader.feed(b"a FETCH " + text.replace(b"\n", b"").replace(b"\r", b"") + b"\r\n")
    if reader.read() != 1:
        return
    command = reader.command
    try:
        command.space()
        request = fetch_request(command, uid=True)
    except ImapSyntaxError:
        return
    for item in request.items:
        assert b"\n" not in item.label or b"{" in item.label


def _url(octets: bytes) -> None:
    with contextlib.suppress(BadUrl):
        url = message_url(octets)
        assert url.uid and octets.startswith(url.rump)


def _structure(octets: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert len(body_of(octets)) <= len(octets)

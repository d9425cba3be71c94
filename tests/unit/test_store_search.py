"""Searching for text: the index and plain reading give the same answer, in any charset and encoding."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator
from contextlib import closing
from email.message import EmailMessage
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_store_account import SETTINGS, deliver, records

from gateway._native import unpack_texts
from gateway.mail.imap_facts import SORT, THREAD, section
from gateway.mail.search_text import body_text_of, folded
from gateway.store import search, texts
from gateway.store.account import AccountFile
from gateway.store.model import ALL_UIDS, ranges_of
from gateway.store.search import BODY, HEADER, TEXT
from gateway.store.texts import REFERENCES, SORT_KEYS


def mail(subject: str, text: str, charset: str = "utf-8", cte: str = "base64") -> bytes:
    message = EmailMessage()
    message["Subject"] = subject
    message["From"] = "Jürgen <j@example.org>"
    message.set_content(text, charset=charset, cte=cte)
    return message.as_bytes().replace(b"\n", b"\r\n")


MAIL = [
    mail("Hello World", "The quick brown fox\n", "us-ascii", "7bit"),
    mail("Grüße aus Köln", "Straße und Maß\n", "iso-8859-1", "quoted-printable"),
    mail("Привет", "быстрая лиса\n", "koi8-r"),
    mail("日本語の件名", "本文テキスト\n", "iso-2022-jp"),
    b"Subject: attachment\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + base64.encodebytes(b"fox inside a PDF"),
    b"Subject: nul\r\n\r\nbefore\0after\xff\r\n",
    b"Subject: html\r\nContent-Type: text/html\r\n\r\n<b>Quick</b> and dirty\r\n",
    b'Subject: quote "this" AND that\r\nReferences: <one@x> two\r\n\r\nNEAR(a b) "x"" y\r\n',
]
QUERIES = [
    (TEXT, "QUICK", [0, 6]),
    (BODY, "quick brown", [0]),
    (TEXT, "hello", [0]),
    (BODY, "hello", []),
    (TEXT, "strasse", [1]),
    (TEXT, "GRÜẞE", [1]),
    (BODY, "Лиса", [2]),
    (TEXT, "привет", [2]),
    (TEXT, "件名", [3]),
    (BODY, "テキスト", [3]),
    (BODY, "fox", [0]),
    (TEXT, "after", [5]),
    (BODY, "before\0after", [5]),
    (BODY, "before after", []),
    (TEXT, 'x"" y', [7]),
    (TEXT, "near(", [7]),
    (TEXT, "fo", [0, 5]),
    (TEXT, "", list(range(len(MAIL)))),
    ("subject", "KÖLN", [1]),
    ("from", "jürgen", [0, 1, 2, 3]),
    (HEADER, "from: jürgen", [0, 1, 2, 3]),
    ("x-none", "", []),
]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[AccountFile]:
    account = AccountFile(tmp_path / "a", SETTINGS, create=True)
    deliver(account, *MAIL)
    yield account
    account.close()


def keys(file: AccountFile) -> list[int]:
    return [record.message for record in records(file, file.mailbox("INBOX"))]


def search_all(file: AccountFile, known: list[int], where: str, text: str) -> list[int]:
    """The keys that have the text."""
    mask = b""
    while len(mask) < len(known):
        mask += file.search(array("Q", known[len(mask) :]), where, text)
    return [key for key, found in zip(known, mask, strict=True) if found]


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("where, text, wanted", QUERIES)
def test_every_message_with_the_text_is_found(
    file: AccountFile, indexed: bool, where: str, text: str, wanted: list[int]
) -> None:
    if indexed:
        assert file.update_search() is False
    known = keys(file)
    assert search_all(file, known, where, text) == [known[at] for at in wanted]


def test_nothing_is_asked(file: AccountFile) -> None:
    assert file.search(array("Q"), BODY, "fox") == file.search(array("Q"), "subject", "fox") == b""
    assert unpack_texts(file.texts(SORT_KEYS, array("Q")) or b"") == []


def test_what_came_after_the_index_is_found_too(
    file: AccountFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "UPDATE_MESSAGES", 3)
    steps = 1
    while file.update_search():
        steps += 1
    assert steps == 3
    deliver(file, mail("new", "a lazy dog and a fox"))
    known = keys(file)
    assert search_all(file, known, TEXT, "fox") == [known[0], known[-1]]


def test_common_fields_are_read_from_blocks(file: AccountFile) -> None:
    deliver(file, *MAIL * 64)  # two blocks are full, the third is not
    known = keys(file)
    for _ in range(2):
        assert search_all(file, known, "subject", "KÖLN") == known[1::8]
        assert search_all(file, known, "subject", "o w") == known[::8]
        assert search_all(file, known, "references", "<ONE@") == known[7::8]
        assert search_all(file, known, "from", "j@") == [key for at, key in enumerate(known) if at % 8 < 4]
        assert search_all(file, known[-3:], "subject", "THAT") == known[-1:]
        assert search_all(file, known[-9:3:-1], "subject", "nul") == known[::-1][10:-4:8]
    for kind in (SORT_KEYS, REFERENCES):
        packed = file.texts(kind, array("Q", known))
        assert packed is not None
        facts = file.facts(known)
        which = SORT if kind == SORT_KEYS else THREAD
        assert unpack_texts(packed) == [section(one, which) for one in facts if isinstance(one, bytes)]


def test_blocks_are_made_in_slices(file: AccountFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "SLICE_S", 0.0)
    deliver(file, *MAIL * 100)
    known = keys(file)
    steps = 0
    while (packed := file.texts(SORT_KEYS, array("Q", known))) is None:
        steps += 1
    assert steps == 2
    assert len(unpack_texts(packed)) == len(known)
    assert search_all(file, known, "subject", "KÖLN") == known[1::8]


def test_blocks_of_removed_messages_go(file: AccountFile) -> None:
    deliver(file, *MAIL * 100)
    search_all(file, keys(file), "subject", "nul")

    def kept() -> set[int]:
        with closing(apsw.Connection(str(file.directory / "search.db"))) as connection:
            return {number for (number,) in connection.execute("SELECT number FROM block")}

    assert kept() == {0, 1, 2}
    inbox = file.mailbox("INBOX").id
    file.expunge(inbox, ranges_of(range(1, 240)), deleted_only=False)
    file.expunge(inbox, ranges_of(range(300, 400)), deleted_only=False)
    while file.reclaim():
        pass
    assert kept() == {1, 2}
    assert search_all(file, keys(file), "subject", "KÖLN") == [key for key in keys(file) if key % 8 == 2]


def test_without_a_file_for_blocks(file: AccountFile) -> None:
    deliver(file, *MAIL * 100)
    (file.directory / "search.db").mkdir()  # it can be neither opened nor removed
    known = keys(file)
    assert search_all(file, known, "subject", "KÖLN") == known[1::8]
    assert search_all(file, known[:9], BODY, "fox") == [known[0], known[8]]
    assert not file.update_search()
    assert not file.search_index_pays()


def test_an_index_is_made_when_it_pays(file: AccountFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "READS_MIN", 1)
    monkeypatch.setattr(search, "READS_PAY", 3)
    known = keys(file)
    for _ in range(3):
        assert not file.search_index_pays()
        search_all(file, known, BODY, "fox")
    assert file.search_index_pays()
    assert not file.update_search()
    assert not file.search_index_pays()
    search_all(file, known, BODY, "fox")
    assert not file.search_index_pays()


def test_long_messages_are_looked_at_always(
    file: AccountFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "TEXT_CHARACTERS_MAX", 10)
    file.update_search()
    known = keys(file)
    assert search_all(file, known, TEXT, "fox") == [known[0]]


def test_rows_of_removed_messages_go(file: AccountFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "UPDATE_MESSAGES", 20)
    deliver(file, *MAIL * 4)
    while file.update_search():
        pass
    file.expunge(file.mailbox("INBOX").id, ALL_UIDS, deleted_only=False)
    file.reclaim()
    deliver(file, MAIL[0])
    file.update_search()
    file.update_search()
    assert search_all(file, keys(file), TEXT, "fox") == keys(file)


@pytest.mark.parametrize("damage", [b"", b"no database at all", bytes(5000)])
def test_a_damaged_index_is_built_again(file: AccountFile, damage: bytes) -> None:
    file.update_search()
    (file.directory / "search.db").write_bytes(damage)
    (file.directory / "search.db-wal").unlink(missing_ok=True)
    other = AccountFile(file.directory, SETTINGS)
    known = keys(other)
    assert search_all(other, known, TEXT, "fox") == [known[0]]
    other.update_search()
    other.update_search()
    assert search_all(other, known, TEXT, "fox") == [known[0]]
    other.close()


@given(st.text(max_size=20), st.text(max_size=8), st.text(max_size=20))
def test_a_text_contains_its_parts(before: str, part: str, after: str) -> None:
    """Folding must not join what stands beside: else the index and plain reading would differ."""
    if (before + part + after).isascii():
        assert folded(part) in folded(before + part + after)


def test_headers_of_enclosed_messages_are_body_text() -> None:
    content = (
        b"Content-Type: message/rfc822\r\n\r\nSubject: =?utf-8?q?inner_=C3=BC?=\r\n\r\ntext\r\n"
    )
    assert folded("inner ü") in body_text_of(content)

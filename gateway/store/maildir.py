"""Import from and export to Maildir, with what Dovecot keeps beside it.

Owns      maildir_folders(), import_maildir(), export_maildir()
Flow      folder → files sorted by UID → ImportItem … ; mailbox → cur/ files, uidlist, keywords
Files     Maildir++: new/ and cur/ of the root are INBOX, .A.B is A/B in modified UTF-7; dovecot-uidlist,
          dovecot-keywords, subscriptions
Limits    one message in memory, and the names of one folder
Errors    OSError and StoreError; what was done stays, doing it again goes on from there
Blocking  everything
Standards https://cr.yp.to/proto/maildir.html, RFC 3501 §5.1.3 (modified UTF-7)
Bugs      a "." in a mailbox name is written as &AC4-, which other programs show so
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from gateway.store.account import AccountFile
from gateway.store.content import sync_directory
from gateway.store.errors import StoreError
from gateway.store.model import SYSTEM_FLAGS, Mailbox, Record, records_of
from gateway.store.transfer import Import, Importer, ImportItem, crlf, lf

_LETTERS = {
    "S": "\\Seen",
    "R": "\\Answered",
    "F": "\\Flagged",
    "T": "\\Deleted",
    "D": "\\Draft",
    "P": "$Forwarded",
}
_KEYWORD_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_READ_OCTETS = 1 << 20


class MaildirFolder(msgspec.Struct, frozen=True):
    """One folder of a Maildir++ tree."""

    name: str  # as a mailbox
    path: Path

    def count(self) -> int:
        """How many files there are."""
        return sum(1 for _ in _files(self.path))


class _Uidlist(msgspec.Struct):
    uidvalidity: int = 0
    uidnext: int = 1
    uids: dict[str, int] = {}


def maildir_folders(root: Path) -> list[MaildirFolder]:
    """INBOX and the folders beside it.  Raises OSError; ValueError when it is no Maildir."""
    found = []
    if (root / "cur").is_dir() or (root / "new").is_dir():
        found.append(MaildirFolder("INBOX", root))
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") and len(path.name) > 1 and (path / "cur").is_dir():
            parts = [from_utf7(part) for part in path.name[1:].split(".")]
            found.append(MaildirFolder("/".join(parts), path))
    if not found:
        raise ValueError(f"{root} is no Maildir: it has neither cur/ nor folders .Name/cur/")
    return found


def _files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """(unique name, letters of the flags, path)."""
    for part in ("cur", "new"):
        directory = folder / part
        if directory.is_dir():
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name[0] != "." and entry.is_file(follow_symlinks=False):
                        unique, _, info = entry.name.partition(":2,")
                        yield unique, info, Path(entry.path)


# -- import -----------------------------------------------------------------------------------------


def import_maildir(
    file: AccountFile,
    folder: MaildirFolder,
    mailbox: str,
    added: Callable[[int], None] = lambda _count: None,
) -> Import:
    """The folder's messages are in the mailbox, with flags, keywords, dates and, if it was new, their UIDs."""
    uidlist = _read_uidlist(folder.path)
    keywords = _read_keywords(folder.path)
    importer = Importer(
        file, mailbox, uidvalidity=uidlist.uidvalidity, uidnext=uidlist.uidnext, added=added
    )
    files = sorted(
        _files(folder.path),
        key=lambda found: (uidlist.uids.get(_base(found[0]), 2**32), found[0]),
    )
    for unique, letters, path in files:
        origin = f"maildir:{_base(unique)}"
        if importer.has(origin):
            continue
        try:
            content = path.read_bytes()
            date = int(path.stat().st_mtime)
        except FileNotFoundError:
            continue  # a reader moved it from new/ to cur/, or removed it: the next import sees
        flags = [_LETTERS[letter] for letter in letters if letter in _LETTERS]
        flags += [
            keywords[letter]
            for letter in letters
            if letter in _KEYWORD_LETTERS and letter in keywords
        ]
        importer.add(
            ImportItem(crlf(content), flags, date, origin, uidlist.uids.get(_base(unique), 0))
        )
    return importer.finish()


def _base(unique: str) -> str:
    """The name without the sizes that Dovecot appends to it."""
    return re.split(r",[SW]=", unique, maxsplit=1)[0]


def _read_uidlist(folder: Path) -> _Uidlist:
    """Version 3 of Dovecot's uidlist; versions 1 and 2 have no header letters."""
    found = _Uidlist()
    found.uids = {}
    try:
        lines = (folder / "dovecot-uidlist").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return found
    if not lines:
        return found
    head = lines[0].split()
    if head[0] == "3":
        for word in head[1:]:
            if word[0] == "V" and word[1:].isdigit():
                found.uidvalidity = int(word[1:])
            elif word[0] == "N" and word[1:].isdigit():
                found.uidnext = int(word[1:])
    elif len(head) > 1 and head[1].isdigit():
        found.uidvalidity = int(head[1])
    for line in lines[1:]:
        uid, _, rest = line.partition(" ")
        name = rest.partition(":")[2] if head[0] == "3" else rest
        if uid.isdigit() and name:
            found.uids[_base(name.partition(":2,")[0])] = int(uid)
    return found


def _read_keywords(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        lines = (folder / "dovecot-keywords").read_text(errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        number, _, name = line.partition(" ")
        if number.isdigit() and int(number) < len(_KEYWORD_LETTERS) and name:
            found[_KEYWORD_LETTERS[int(number)]] = name
    return found


# -- export -----------------------------------------------------------------------------------------


def export_maildir(
    file: AccountFile,
    mailbox: Mailbox,
    root: Path,
    *,
    crlf_lines: bool = False,
    written: Callable[[int], None] = lambda _count: None,
) -> int:
    """The mailbox is a folder of the Maildir; returns how many messages were written that were not there.

    Raises StoreError for a message that cannot be read; those before it are there.
    """
    folder = root if mailbox.name == "INBOX" else root / ("." + _folder_name(mailbox.name))
    for part in ("tmp", "new", "cur"):
        (folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder != root:
        (folder / "maildirfolder").touch()
    there = {_base(unique) for unique, _, _ in _files(folder)}
    letters = {
        word: _KEYWORD_LETTERS[index]
        for index, word in enumerate(mailbox.keywords[: len(_KEYWORD_LETTERS)])
    }
    count = 0
    lines = [f"3 V{mailbox.uidvalidity} N{mailbox.uidnext}"]
    for chunk in file.snapshot(mailbox.id).chunks:
        for record in records_of(chunk):
            unique = f"{record.internal_date}.M{record.message}U{record.uid}.gateway"
            lines.append(f"{record.uid} :{unique}")
            if unique not in there:
                _write_message(file, folder, record, unique, mailbox, letters, crlf_lines)
                count += 1
            written(1)
    _write_text(folder / "dovecot-uidlist", lines)
    if letters:
        _write_text(
            folder / "dovecot-keywords",
            [f"{_KEYWORD_LETTERS.index(letter)} {word}" for word, letter in letters.items()],
        )
    for part in ("cur", "."):
        sync_directory(folder / part)
    return count


def _write_message(
    file: AccountFile,
    folder: Path,
    record: Record,
    unique: str,
    mailbox: Mailbox,
    letters: dict[str, str],
    crlf_lines: bool,
) -> None:
    (content,) = file.read([record.message])
    if isinstance(content, StoreError):
        raise content
    octets = content.header + content.body
    if not crlf_lines:
        octets = lf(octets)
    names = mailbox.names(record.flags)
    info = sorted(
        {letter for letter, flag in _LETTERS.items() if flag in names}
        | {letters[name] for name in names if name not in SYSTEM_FLAGS and name in letters}
    )
    temporary = folder / "tmp" / unique
    with open(temporary, "wb") as out:
        out.write(octets)
        out.flush()
        os.utime(out.fileno(), (record.internal_date, record.internal_date))
        os.fdatasync(out.fileno())
    temporary.rename(folder / "cur" / f"{unique}:2,{''.join(info)}")


def _write_text(path: Path, lines: list[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("\n".join(lines) + "\n")
    temporary.rename(path)


# -- names ------------------------------------------------------------------------------------------


def _folder_name(mailbox: str) -> str:
    return ".".join(to_utf7(part).replace(".", "&AC4-") for part in mailbox.split("/"))


def to_utf7(text: str) -> str:
    """RFC 3501 §5.1.3."""

    def encoded(match: re.Match[str]) -> str:
        octets = base64.b64encode(match[0].encode("utf-16-be")).decode().rstrip("=")
        return f"&{octets.replace('/', ',')}-"

    return re.sub(r"[^\x20-\x7e]+", encoded, text.replace("&", "&-"))


def from_utf7(text: str) -> str:
    """The same backwards; what is no modified UTF-7 stays as it is."""

    def decoded(match: re.Match[str]) -> str:
        if not match[1]:
            return "&"
        octets = match[1].replace(",", "/")
        try:
            return base64.b64decode(octets + "=" * (-len(octets) % 4)).decode("utf-16-be")
        except ValueError:
            return match[0]

    return re.sub(r"&([A-Za-z0-9+,]*)-", decoded, text)

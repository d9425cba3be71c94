"""Import from and export to mbox files (RFC 4155), in the mboxrd way.

    Owns      import_mbox(), export_mbox()
    Flow      file → messages between "From " lines → ImportItem … ; mailbox → file.part → rename
    Limits    one message in memory; MESSAGE_OCTETS_MAX of it
    Errors    ValueError for a file that is no mbox; OSError, StoreError
    Blocking  everything
    Standards RFC 4155; Status, X-Status, X-Keywords as UW IMAP and Dovecot write them
    Bugs      ">From " is unquoted though some old programs wrote it so on purpose

An export is a new file, complete or not there; an import goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from calendar import timegm
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from gateway._native import find_field
from gateway.store.account import AccountFile
from gateway.store.content import sync_directory
from gateway.store.errors import StoreError
from gateway.store.model import Mailbox, records_of
from gateway.store.transfer import Import, Importer, ImportItem, crlf, lf

MESSAGE_OCTETS_MAX = 1 << 30

_SEPARATOR = re.compile(rb"From \S*.*\d\d:\d\d")
_QUOTED = re.compile(rb"^>(>*From )", re.MULTILINE)
_TO_QUOTE = re.compile(rb"^(>*From )", re.MULTILINE)
_DATE = re.compile(
    rb"([A-Z][a-z]{2}) +(\d{1,2}) (\d\d):(\d\d)(?::(\d\d))?(?: [A-Z]{2,5}| [+-]\d{4})? (\d{4})"
)
_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")  # fmt: skip
_OWN_FIELDS = re.compile(
    rb"^(?:Status|X-Status|X-Keywords|X-UID|X-IMAP|X-IMAPbase|Content-Length):.*(?:\r?\n[ \t].*)*\r?\n",
    re.IGNORECASE | re.MULTILINE,
)
_STATUS = {"R": "\\Seen", "A": "\\Answered", "F": "\\Flagged", "D": "\\Deleted", "T": "\\Draft"}


def import_mbox(
    file: AccountFile,
    path: Path,
    mailbox: str,
    read: Callable[[int], None] = lambda _octets: None,
) -> Import:
    """The file's messages are in the mailbox, with dates and flags; read is told of octets done."""
    importer = Importer(file, mailbox)
    with open(path, "rb") as source:
        seen: dict[str, int] = {}
        for separator, content in _messages(source, path, read):
            digest = hashlib.sha256(content).hexdigest()[:32]
            seen[digest] = seen.get(digest, 0) + 1  # equal messages are told apart by their order
            origin = f"mbox:{digest}:{seen[digest]}"
            if importer.has(origin):
                continue
            importer.add(_item(separator, content, origin))
    return importer.finish()


def _messages(
    source: BinaryIO, path: Path, read: Callable[[int], None]
) -> Iterator[tuple[bytes, bytes]]:
    """(separator line, content as it is in the file)."""
    separator = b""
    lines: list[bytes] = []
    octets = 0
    blank = True  # RFC 4155: a separator follows an empty line, or begins the file
    for line in source:
        read(len(line))
        if blank and line.startswith(b"From ") and _SEPARATOR.match(line):
            if separator:
                yield separator, _joined(lines)
            separator, lines, octets, blank = line, [], 0, False
            continue
        if not separator:
            if not line.strip():
                continue
            raise ValueError(f"{path} is no mbox: it does not begin with a From line")
        blank = line in (b"\n", b"\r\n")
        octets += len(line)
        if octets > MESSAGE_OCTETS_MAX:
            raise ValueError(f"{path}: a message of more than {MESSAGE_OCTETS_MAX} octets")
        lines.append(line)
    if separator:
        yield separator, _joined(lines)


def _joined(lines: list[bytes]) -> bytes:
    if lines and lines[-1] in (b"\n", b"\r\n"):
        lines.pop()  # the empty line that the format wants between messages
    return b"".join(lines)


def _item(separator: bytes, content: bytes, origin: str) -> ImportItem:
    head_end = min(
        (at for at in (content.find(b"\n\n"), content.find(b"\r\n\r\n")) if at >= 0),
        default=len(content),
    )
    head, rest = content[: head_end + 1], content[head_end + 1 :]
    letters = (find_field(head, b"Status") or b"") + (find_field(head, b"X-Status") or b"")
    flags = [flag for letter, flag in _STATUS.items() if letter.encode() in letters]
    keywords = (find_field(head, b"X-Keywords") or b"").decode("ascii", "ignore").split()
    body = _QUOTED.sub(rb"\1", _OWN_FIELDS.sub(b"", head) + rest)
    return ImportItem(crlf(body), flags + keywords, _date(separator), origin)


def _date(separator: bytes) -> int:
    found = _DATE.search(separator)
    if found is None or found[1] not in _MONTHS:
        return int(time.time())
    month = _MONTHS.index(found[1]) + 1
    try:
        return timegm(
            (int(found[6]), month, int(found[2]), int(found[3]), int(found[4]), int(found[5] or 0))
        )
    except ValueError:
        return int(time.time())


def export_mbox(
    file: AccountFile,
    mailbox: Mailbox,
    path: Path,
    *,
    written: Callable[[int], None] = lambda _count: None,
) -> int:
    """The file is there, complete; returns how many messages it has.  Raises OSError, StoreError."""
    partial = path.with_name(path.name + ".part")
    count = 0
    with open(partial, "wb") as out:
        for chunk in file.snapshot(mailbox.id).chunks:
            for record in records_of(chunk):
                (content,) = file.read([record.message])
                if isinstance(content, StoreError):
                    raise content
                names = mailbox.names(record.flags)
                date = time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(record.internal_date))
                out.write(f"From MAILER-DAEMON {date}\n".encode())
                out.write(_with_status(lf(content.header), names))
                out.write(_TO_QUOTE.sub(rb">\1", lf(content.body)))
                out.write(b"\n" if content.body.endswith(b"\n") or not content.body else b"\n\n")
                count += 1
                written(1)
        out.flush()
        os.fsync(out.fileno())
    partial.rename(path)
    sync_directory(path.parent)
    return count


def _with_status(header: bytes, names: list[str]) -> bytes:
    letters = {flag: letter for letter, flag in _STATUS.items()}
    status = "RO" if "\\Seen" in names else "O"
    more = "".join(letters[name] for name in names if name in letters and name != "\\Seen")
    fields = f"Status: {status}\n" + (f"X-Status: {more}\n" if more else "")
    keywords = " ".join(name for name in names if not name.startswith("\\"))
    if keywords:
        fields += f"X-Keywords: {keywords}\n"
    head = header[:-1] if header.endswith(b"\n\n") else header
    tail = b"\n" if header.endswith(b"\n\n") else b""
    return _TO_QUOTE.sub(rb">\1", head) + fields.encode() + tail

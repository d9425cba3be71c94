"""Messages from and to other stores: what Maildir and mbox have in common.

    Owns      Importer, ImportItem; crlf(), lf()
    Flow      a source's items → batches → one transaction each → the mailbox
    Limits    BATCH_MESSAGES and BATCH_OCTETS a transaction
    Errors    StoreError kinds; a batch is stored whole or not at all
    Blocking  everything

An item names its source (`origin`): an import that was interrupted, or is done again, adds only what is not there yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from gateway.mail.imap_facts import ORIGIN, section
from gateway.store.account import AccountFile
from gateway.store.errors import NoSuchMailbox, StoreError
from gateway.store.messages import message_keys
from gateway.store.model import Mailbox

BATCH_MESSAGES = 200
BATCH_OCTETS = 8 << 20

_LONE_LF = re.compile(rb"(?<!\r)\n")


class ImportItem(msgspec.Struct):
    """One message of another store."""

    content: bytes  # as it will be kept: with CRLF
    flags: list[str]
    internal_date: int  # seconds since 1970
    origin: str
    uid: int = 0  # to be kept, when the mailbox is new; 0: any


class Import(msgspec.Struct):
    """What became of one mailbox."""

    mailbox: str
    added: int = 0
    known: int = 0  # there already, by their origin
    octets: int = 0


def crlf(content: bytes) -> bytes:
    """Every line ends with CRLF."""
    return _LONE_LF.sub(b"\r\n", content) if b"\n" in content else content


def lf(content: bytes) -> bytes:
    """Every line ends with LF."""
    return content.replace(b"\r\n", b"\n")


class Importer:
    """Fills one mailbox."""

    def __init__(
        self,
        file: AccountFile,
        name: str,
        *,
        uidvalidity: int = 0,
        uidnext: int = 1,
        added: Callable[[int], None] = lambda _count: None,
    ) -> None:
        """uidvalidity, uidnext: kept, with the items' UIDs, when the mailbox has had no message yet."""
        self._file = file
        self._added = added
        self._uidnext = uidnext
        try:
            box = file.mailbox(name)
        except NoSuchMailbox:
            box = file.create(name)
        if uidvalidity and box.uidnext == 1:
            box = file.set_uidvalidity(box.id, uidvalidity)
        self._keeps_uids = uidvalidity == box.uidvalidity  # an import that is gone on with, too
        self.mailbox: Mailbox = box
        self.result = Import(box.name)
        self._known = self._origins()
        self._batch: list[ImportItem] = []
        self._octets = 0

    def _origins(self) -> set[str]:
        found: set[str] = set()
        for records in self._file.snapshot(self.mailbox.id).chunks:
            for facts in self._file.facts(message_keys(records)):
                if not isinstance(facts, StoreError):
                    found.add(section(facts, ORIGIN).decode(errors="replace"))
        return found

    def has(self, origin: str) -> bool:
        """True when a message of that origin is in the mailbox: it need not be read."""
        if origin in self._known:
            self.result.known += 1
            self._added(1)
            return True
        return False

    def add(self, item: ImportItem) -> None:
        self._batch.append(item)
        self._octets += len(item.content)
        if len(self._batch) == BATCH_MESSAGES or self._octets >= BATCH_OCTETS:
            self.flush()

    def finish(self) -> Import:
        """Everything is durable; UIDs that the source has given out stay given out."""
        self.flush()
        if self._keeps_uids:
            self._file.raise_uidnext(self.mailbox.id, self._uidnext)
        return self.result

    def flush(self) -> None:
        """What was added so far is durable."""
        if not self._batch:
            return
        self._file.add(
            self.mailbox.id,
            [
                (
                    item.content,
                    item.flags,
                    item.internal_date,
                    item.origin,
                    item.uid if self._keeps_uids else 0,
                )
                for item in self._batch
            ],
        )
        self.result.added += len(self._batch)
        self.result.octets += self._octets
        self._added(len(self._batch))
        self._batch, self._octets = [], 0

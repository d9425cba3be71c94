"""LIST with all its options, and LSUB.

Owns      LIST, LSUB
Flow      read_tree() → names that match → LIST, and STATUS, MYRIGHTS, METADATA of each where asked for
Limits    BATCH names between two looks at whether the client reads
Errors    those of the store
Standards RFC 9051 §6.3.9, §7.3.1; RFC 3501 §6.3.9 (LSUB); RFC 3348, RFC 5258, RFC 5819, RFC 6154 §2, RFC 8440, RFC 9590
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gateway.mail.imap_rights import show_rights
from gateway.protocol.imap.list import ListRequest, Pattern, parse_list, parse_lsub, pattern_of
from gateway.protocol.imap.response import mailbox_octets
from gateway.server.imap.metadata import may_annotate, metadata_response
from gateway.server.imap.state import AUTHENTICATED, Capability, Handler, Outcome
from gateway.server.imap.status import StatusFormat, deleted_octets
from gateway.server.imap.tree import Tree, in_order, read_tree
from gateway.store.names import SEPARATOR

if TYPE_CHECKING:
    from gateway._native import ImapCommand
    from gateway.server.imap.session import ImapSession
    from gateway.store.store import Account

BATCH = 500
_PLAIN = re.compile(r"[ !#-%'-\[\]-~]*")  # of which a name is sent as it is, between quotation marks
_NEXT_LSUB = '"\r\n* LSUB () "/" "'


async def cmd_list(session: ImapSession, command: ImapCommand) -> Outcome:
    request = parse_list(command)
    if not request.patterns:  # RFC 9051 §6.3.9: only the delimiter
        session.untagged(b'LIST (\\Noselect) "/" ""')
        return None
    pattern = pattern_of(request.patterns)
    tree = await read_tree(session, pattern.may_lie_below, pattern.prefix)
    found = _select(tree, pattern, request)
    lines = ListLines(session, tree, request)
    await lines.read(found)
    more = bool(request.status or request.rights or request.metadata)
    for start in range(0, len(found), BATCH):
        pieces = []
        for name, children in found[start : start + BATCH]:
            octets = mailbox_octets(name, session.machine.utf8)
            pieces.append(lines.list_line(name, octets, children))
            if more:
                pieces += lines.more(name, octets)
        session.send(b"".join(pieces))
        await session.drained()
    return None


def _select(tree: Tree, pattern: Pattern, request: ListRequest) -> list[tuple[str, bool]]:
    """(name, has it names below that the selection options mean) of each to be listed."""
    matches = pattern.matches
    if not (request.subscribed or request.special_use):
        return [(name, False) for name in tree.names if matches(name)]
    chosen: Iterable[str] = tree.names
    if request.subscribed:
        chosen = sorted(tree.subscribed, key=in_order)
    if request.special_use:
        chosen = [
            name
            for name in chosen
            if (row := tree.rows.get(name)) and row.special_use and name not in tree.foreign
        ]
    shown = {name: False for name in chosen if matches(name)}
    if not request.recursive:
        return list(shown.items())
    # RFC 5258 §4: a parent that is not meant itself is told when something below it is, and is not told.
    above: dict[str, bool] = {}  # there is one of those
    for name in chosen:
        untold = name not in shown
        parent = name.rpartition(SEPARATOR)[0]
        while parent and above.get(parent, -1) < untold:
            above[parent] = untold
            parent = parent.rpartition(SEPARATOR)[0]
    for parent, untold in above.items():
        if parent in shown or (untold and matches(parent)):
            shown[parent] = True
    return sorted(shown.items(), key=lambda item: in_order(item[0]))


class ListLines:
    """The responses for names of a tree."""

    def __init__(self, session: ImapSession, tree: Tree, request: ListRequest) -> None:
        self._session = session
        self._tree = tree
        self._request = request
        self._status = StatusFormat(session, request.status) if request.status else None
        modern = request.extended or b"IMAP4REV2" in session.enabled
        self._nonexistent = "\\NonExistent" if modern else "\\Noselect"  # RFC 5258 §3: implied
        self._metadata: dict[tuple[str, int], dict[str, bytes]] = {}
        self._deleted: dict[str, int] = {}  # DELETED-STORAGE, where it is not 0
        criteria = [
            word
            for word, on in (
                ("SUBSCRIBED", request.subscribed),
                ("SPECIAL-USE", request.special_use),
            )
            if on
        ]
        self._childinfo = b' ("CHILDINFO" (' + " ".join(f'"{c}"' for c in criteria).encode() + b"))"
        self._show_subscribed = request.return_subscribed

    async def read(self, found: Iterable[tuple[str, bool]]) -> None:
        """What the tree does not have."""
        if self._request.metadata:
            await self._read_metadata()
        if self._status is not None and self._status.needs_deleted_octets:
            for name, _ in found:
                row = self._tree.rows.get(name)
                if row is not None and row.deleted and "r" in self._tree.rights(name):
                    self._deleted[name] = await deleted_octets(self._account(name), row)

    def list_line(self, name: str, octets: bytes, children: bool) -> bytes:
        """* LIST; octets: the name as it is sent; children: with CHILDINFO (RFC 5258 §3.5)."""
        tree = self._tree
        row = tree.rows.get(name)
        words = b"\\HasChildren" if name in tree.parents else b"\\HasNoChildren"
        if row is None:
            words = b"%b %b" % (self._nonexistent.encode(), words)
        elif row.special_use and name not in tree.foreign:
            words = b"%b %b" % (words, row.special_use.encode())
        if self._show_subscribed and name in tree.subscribed:
            words += b" \\Subscribed"
        if children:
            return b'* LIST (%b) "/" %b%b\r\n' % (words, octets, self._childinfo)
        return b'* LIST (%b) "/" %b\r\n' % (words, octets)

    def more(self, name: str, octets: bytes) -> list[bytes]:
        """What else was asked for; nothing about names that are no mailboxes."""
        row = self._tree.rows.get(name)
        if row is None:
            return []
        pieces = []
        rights = self._tree.rights(name)
        if self._status is not None and "r" in rights:
            where = self._tree.foreign.get(name)
            account = where.owner if where else self._session.account_name
            pieces.append(self._status.response(octets, account, row, self._deleted.get(name, 0)))
        if self._request.rights:
            shown = show_rights(rights, old=True).encode()
            pieces.append(b"* MYRIGHTS %b %b\r\n" % (octets, shown))
        if self._request.metadata and may_annotate(rights):
            where = self._tree.foreign.get(name)
            known = self._metadata.get((where.owner if where else "", row.id), {})
            values = {entry: known.get(entry) for entry in self._request.metadata}
            pieces.append(metadata_response(octets, values))
        return pieces

    async def _read_metadata(self) -> None:
        """One statement for each account."""
        session = self._session
        for owner in {"", *(where.owner for where in self._tree.foreign.values())}:
            account = (
                session.service.store.account(owner, create=False) if owner else session.account
            )
            for one in await account.annotations(None, session.account_name):
                self._metadata.setdefault((owner, one.mailbox), {})[one.entry] = one.value
        if "/private/specialuse" in self._request.metadata:
            for name, row in self._tree.rows.items():
                if row is not None and row.special_use and name not in self._tree.foreign:
                    values = self._metadata.setdefault(("", row.id), {})
                    values["/private/specialuse"] = row.special_use.encode()

    def _account(self, name: str) -> Account:
        where = self._tree.foreign.get(name)
        if where is None:
            return self._session.account
        return self._session.service.store.account(where.owner, create=False)


async def cmd_lsub(session: ImapSession, command: ImapCommand) -> Outcome:
    text = parse_lsub(command)
    if not text:
        session.untagged(b'LSUB (\\Noselect) "/" ""')
        return None
    pattern = pattern_of((text,))
    names = subscribed = await session.account.subscriptions(pattern.prefix)
    if not pattern.is_any and not all(map(pattern.matches, names)):  # what leads to the others may match instead
        tree = Tree()
        tree.subscribed.update(names)
        request = ListRequest(subscribed=True, recursive=True)
        names = [name for name, _ in _select(tree, pattern, request)]
    only = names is subscribed
    known = frozenset(subscribed)
    utf8 = session.machine.utf8
    for start in range(0, len(names), BATCH):
        some = names[start : start + BATCH]
        if only and _PLAIN.fullmatch("".join(some)):
            session.send(f'* LSUB () "/" "{_NEXT_LSUB.join(some)}"\r\n'.encode())
        else:
            # RFC 3501 §6.3.9: \Noselect here says that only something below it is subscribed.
            lines = [
                b'* LSUB (%b) "/" %b\r\n' % (b"" if name in known else b"\\Noselect", mailbox_octets(name, utf8))
                for name in some
            ]
            session.send(b"".join(lines))
        await session.drained()
    return None


COMMANDS = {
    b"LIST": Handler(cmd_list, AUTHENTICATED, indexed=False),
    b"LSUB": Handler(cmd_lsub, AUTHENTICATED, indexed=False),
}
CAPABILITIES = [
    Capability(b"CHILDREN"),
    Capability(b"LIST-EXTENDED"),
    Capability(b"LIST-STATUS"),
    Capability(b"LIST-MYRIGHTS"),
    Capability(b"LIST-METADATA"),
    Capability(b"SPECIAL-USE"),
]

"""NOTIFY: which events a client wants to hear of, for which mailboxes.

Owns      Filter, NotifyRequest, parse_notify(); the names of events
Errors    ImapSyntaxError; UnknownEvent, which is answered with NO
Limits    the command's own
Standards RFC 5465 §5 (events and which belong together), §6 (mailboxes), §8
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway._native import ImapCommand, ImapSyntaxError
from gateway.protocol.imap.fetch import Item, fetch_items

MESSAGE_NEW, MESSAGE_EXPUNGE, FLAG_CHANGE = b"MESSAGENEW", b"MESSAGEEXPUNGE", b"FLAGCHANGE"
MAILBOX_NAME, SUBSCRIPTION_CHANGE = b"MAILBOXNAME", b"SUBSCRIPTIONCHANGE"
MAILBOX_METADATA_CHANGE = b"MAILBOXMETADATACHANGE"
SERVER_METADATA_CHANGE = b"SERVERMETADATACHANGE"

MESSAGE_EVENTS = frozenset((MESSAGE_NEW, MESSAGE_EXPUNGE, FLAG_CHANGE))
EVENTS = MESSAGE_EVENTS | {
    MAILBOX_NAME,
    SUBSCRIPTION_CHANGE,
    MAILBOX_METADATA_CHANGE,
    SERVER_METADATA_CHANGE,
}
# As BADEVENT lists them.
SUPPORTED = (
    b"MessageNew MessageExpunge FlagChange MailboxName SubscriptionChange MailboxMetadataChange "
    b"ServerMetadataChange"
)

INBOXES, PERSONAL, SUBSCRIBED = b"INBOXES", b"PERSONAL", b"SUBSCRIBED"
SUBTREE, MAILBOXES = b"SUBTREE", b"MAILBOXES"
SELECTED, SELECTED_DELAYED = b"SELECTED", b"SELECTED-DELAYED"


class UnknownEvent(Exception):
    """An event that we cannot tell: NO [BADEVENT] (§3.1)."""


class Filter(NamedTuple):
    """Mailboxes, and the events that are of interest there."""

    kind: bytes  # INBOXES, PERSONAL, SUBSCRIBED, SUBTREE or MAILBOXES
    names: tuple[str, ...]  # of SUBTREE and MAILBOXES
    events: frozenset[bytes]


class NotifyRequest(NamedTuple):
    """NOTIFY SET."""

    status: bool  # tell how things are at first
    selected: frozenset[bytes]  # message events of the selected mailbox
    delayed: bool  # its expunges are told when a command may tell them
    items: tuple[Item, ...]  # of new messages there, to be fetched at once
    filters: tuple[Filter, ...]  # for the other mailboxes


def parse_notify(command: ImapCommand) -> NotifyRequest | None:
    """None: NOTIFY NONE.  Raises UnknownEvent when the syntax is right."""
    command.space()
    word = command.word()
    if word == b"NONE":
        command.end()
        return None
    if word != b"SET":
        raise ImapSyntaxError("NOTIFY SET or NOTIFY NONE")
    command.space()
    status = command.accept(b"STATUS")
    if status:
        command.space()
    groups = [_group(command)]
    while not command.at_end():
        command.space()
        groups.append(_group(command))
    command.end()
    if any(events - EVENTS for _, _, events, _ in groups):
        raise UnknownEvent
    return _request(status, groups)


_Group = tuple[bytes, tuple[str, ...], frozenset[bytes], tuple[Item, ...]]


def _request(status: bool, groups: Sequence[_Group]) -> NotifyRequest:
    selected: frozenset[bytes] | None = None
    delayed = False
    items: tuple[Item, ...] = ()
    filters = []
    for kind, names, events, wanted in groups:
        told = events & MESSAGE_EVENTS
        if told and not told >= {MESSAGE_NEW, MESSAGE_EXPUNGE}:  # §5
            raise ImapSyntaxError(
                "MessageNew and MessageExpunge belong together, and with FlagChange"
            )
        if kind in (SELECTED, SELECTED_DELAYED):
            if selected is not None:
                raise ImapSyntaxError("SELECTED or SELECTED-DELAYED, once")  # §6.1
            if events - MESSAGE_EVENTS:
                raise ImapSyntaxError("SELECTED is about messages only")
            selected, delayed, items = events, kind == SELECTED_DELAYED, wanted
        else:
            if wanted:
                raise ImapSyntaxError("Only messages of the selected mailbox can be fetched")  # §8
            filters.append(Filter(kind, names, events))
    return NotifyRequest(status, selected or frozenset(), delayed, items, tuple(filters))


def _group(command: ImapCommand) -> _Group:
    command.expect(b"(")
    kind = command.word()
    names: tuple[str, ...] = ()
    if kind in (SUBTREE, MAILBOXES):
        command.space()
        names = _names(command)
    elif kind not in (INBOXES, PERSONAL, SUBSCRIBED, SELECTED, SELECTED_DELAYED):
        raise ImapSyntaxError("Unknown kind of mailboxes")
    command.space()
    events: set[bytes] = set()
    items: tuple[Item, ...] = ()
    if not command.accept(b"NONE"):
        command.expect(b"(")
        while True:
            event = command.word()
            if event in events:
                raise ImapSyntaxError("An event is there twice")
            events.add(event)
            if command.accept(b")"):
                break
            command.space()
            if event == MESSAGE_NEW and command.peek() == ord("("):
                items = fetch_items(command)
                if command.accept(b")"):
                    break
                command.space()
    command.expect(b")")
    return kind, names, frozenset(events), items


def _names(command: ImapCommand) -> tuple[str, ...]:
    if not command.accept(b"("):
        return (command.mailbox(),)
    names = {command.mailbox(): None}
    while not command.accept(b")"):
        command.space()
        names[command.mailbox()] = None
    return tuple(names)

"""The mailbox of the comparison: real mail, the same for every server.

Owns      mailbox(): messages with CRLF; fill(): into a server, by MULTIAPPEND
Bugs      mail that Cyrus refuses (NUL, lines without a colon in the header) is left out for all
"""

from __future__ import annotations

import random
import re

from benches.peers.imap_client import Imap
from benches.peers.retrieval import mails

OCTETS_MAX = 200_000
BATCH = 100  # messages of one APPEND
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
_IDENTIFIERS = re.compile(rb"(?im)^((?:message-id|references|in-reply-to):(?:[^\r]|\r\n[ \t])*)")


def mailbox(count: int) -> tuple[list[bytes], str]:
    """So many, and where they are from: each time round with Message-IDs of its own, threads kept."""
    corpus, source = mails()
    usable = [mail for mail in map(_without_mbox_line, corpus) if _is_plain(mail) and len(mail) <= OCTETS_MAX]
    random.Random(1).shuffle(usable)  # the corpus is sorted by kind
    found = []
    for number in range(count):
        turn, index = divmod(number, len(usable))
        mail = usable[index]
        if turn:
            head, end, body = mail.partition(b"\r\n\r\n")
            renamed = _IDENTIFIERS.sub(lambda field: field[1].replace(b"<", b"<%d." % turn), head)  # noqa: B023
            mail = renamed + end + body
        found.append(mail)
    return found, source


def _without_mbox_line(mail: bytes) -> bytes:
    return mail.partition(b"\r\n")[2] if mail.startswith(b"From ") else mail


def _is_plain(mail: bytes) -> bool:
    head, _, _ = mail.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    return b"\0" not in mail and all((line[:1] in b" \t" and line) or _FIELD.match(line) for line in lines)


def fill(client: Imap, name: str, messages: list[bytes]) -> None:
    for start in range(0, len(messages), BATCH):
        client.append(name, messages[start : start + BATCH])

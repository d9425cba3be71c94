"""A gateway with IMAP and the store, one for all tests of a module, and an account for each of them."""

from __future__ import annotations

import imaplib
import itertools
import subprocess
from pathlib import Path

from interop_peers import RunningGateway, listener, route

PASSWORD = "correct horse battery"
NUMBERS = itertools.count(1)


def message(number: int, size: int = 200) -> bytes:
    """CRLF throughout, with its own Message-ID."""
    head = (
        f"From: Bob <bob@example.test>\r\nTo: alice@example.test\r\nSubject: number {number}\r\n"
        f"Date: Mon, 2 Nov 2026 10:00:{number % 60:02d} +0000\r\nMessage-ID: <{number}@example.test>\r\n\r\n"
    )
    return head.encode() + b"line of text\r\n" * (size // 14 + 1)


class ImapHouse(RunningGateway):
    """ports: IMAP with STARTTLS, IMAP over TLS, LMTP."""

    def __init__(self, where: Path, certificate: tuple[Path, Path]) -> None:
        super().__init__(
            where,
            {
                "tls": {"certificate": str(certificate[0]), "key": str(certificate[1])},
                "auth": {"argon2_time_cost": 1, "argon2_memory_kib": 64, "plaintext_auth": ["127.0.0.0/8"]},
                "listen": [
                    listener("imap", tls="starttls"),
                    listener("imap", tls="implicit"),
                    listener("lmtp"),
                ],
                "route": [route("store:", "example.test")],
            },
        )

    @property
    def tls_port(self) -> int:
        return self.ports[1]

    def add_account(self) -> str:
        """A new one; its name."""
        name = f"user{next(NUMBERS)}@example.test"
        subprocess.run(
            [*self.words("user", "add", name), "--password-stdin"],
            input=PASSWORD.encode(),
            check=True,
            capture_output=True,
        )
        return name

    def login(self, account: str) -> imaplib.IMAP4:
        client = imaplib.IMAP4("127.0.0.1", self.port, timeout=60)
        client.login(account, PASSWORD)
        return client

    def fill(self, account: str, count: int, mailbox: str = "INBOX") -> None:
        client = self.login(account)
        for number in range(1, count + 1):
            assert client.append(mailbox, "", "", message(number))[0] == "OK"
        client.logout()

    def contents(self, account: str, mailbox: str = "INBOX") -> dict[bytes, set[str]]:
        """{octets: flags} of every message, as imaplib sees them."""
        client = self.login(account)
        client.select(mailbox, readonly=True)
        found: dict[bytes, set[str]] = {}
        _, data = client.uid("FETCH", "1:*", "(FLAGS BODY.PEEK[])")
        for line in data:
            if isinstance(line, tuple):
                flags = {flag.decode() for flag in imaplib.ParseFlags(line[0])}
                found[line[1]] = flags - {"\\Recent"}
        client.logout()
        return found

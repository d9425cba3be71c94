"""Dovecot's imap on a pipe, logged in, with one Maildir: to be asked the same as we are."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from pathlib import Path

from interop_peers import need
from reachable import let_others_in

# Dovecot touches no mail as root.
OWNER = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
CONFIG = """
base_dir = {0}/run
mail_location = maildir:{0}/maildir
log_path = {0}/log
mail_uid = {1.pw_uid}
mail_gid = {1.pw_gid}
first_valid_uid = 1
first_valid_gid = 1
ssl = no
protocols = imap
namespace inbox {{
  inbox = yes
}}
"""


class Dovecot:
    """INBOX is open, for reading only."""

    def __init__(self, directory: Path, messages: list[bytes]) -> None:
        current = directory / "maildir" / "cur"
        for name in ("cur", "new", "tmp"):
            (directory / "maildir" / name).mkdir(parents=True)
        for at, content in enumerate(messages):
            (current / f"{1_600_000_000 + at}.M{at}.host:2,").write_bytes(content)
        config = directory / "dovecot.conf"
        config.write_text(CONFIG.format(directory, OWNER))
        for path in (directory, *directory.rglob("*")):
            os.chown(path, OWNER.pw_uid, OWNER.pw_gid)
        let_others_in(directory)
        self.process = subprocess.Popen(
            [need("doveadm"), "-c", str(config), "exec", "imap"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"USER": "tester", "HOME": str(directory), "PATH": os.environ["PATH"]},
        )
        assert self._response().startswith(b"* PREAUTH")
        self.ok("EXAMINE INBOX")

    def cmd(self, command: str) -> tuple[list[bytes], bytes]:
        """(untagged responses without "* ", the tagged one without its tag), literals included."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"a " + command.encode() + b"\r\n")
        self.process.stdin.flush()
        untagged = []
        while not (response := self._response()).startswith(b"a "):
            untagged.append(response[2:])
        return untagged, response[2:]

    def ok(self, command: str) -> list[bytes]:
        untagged, tagged = self.cmd(command)
        assert tagged.startswith(b"OK"), tagged
        return untagged

    def _response(self) -> bytes:
        assert self.process.stdout is not None
        octets = b""
        while True:
            line = self.process.stdout.readline()
            assert line, "Dovecot closed"
            octets += line
            literal = re.search(rb"\{(\d+)\}\r\n\Z", line)
            if literal is None:
                return octets[:-2]
            octets += self.process.stdout.read(int(literal[1]))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

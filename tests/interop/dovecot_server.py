"""Debian's Dovecot as a server: the protocols that are asked for, each at a port of its own, with users of a file.

Owns      DovecotServer; its directory, certificate and log
Limits    needs root: mail belongs to the user "mail"
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from interop_peers import WAIT_S, free_port, listening, need, need_root, wait_for

from gateway.cli.init import self_signed

CONFIG = """\
protocols = {protocols}
base_dir = {where}/run
state_dir = {where}/state
listen = 127.0.0.1
log_path = {where}/log
default_internal_user = mail
default_internal_group = mail
default_login_user = mail
mail_location = maildir:{where}/mail/%u
mail_uid = mail
mail_gid = mail
first_valid_uid = 1
lmtp_rcpt_check_quota = no
mail_max_userip_connections = 1000
ssl = yes
ssl_cert = <{where}/certificate
ssl_key = <{where}/key
disable_plaintext_auth = no
auth_mechanisms = plain login scram-sha-256
hostname = dovecot.example.test
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {where}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {where}/users
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
"""
LOGIN = """\
service {name}-login {{
  chroot =
  inet_listener {name} {{
    port = {port}
  }}
  inet_listener {name}s {{
    port = {secure_port}
    ssl = yes
  }}
}}
"""
LMTP = """\
service lmtp {{
  unix_listener lmtp {{
    mode = 0666
  }}
  inet_listener lmtp {{
    port = {port}
  }}
}}
"""


class DovecotServer:
    """ports: by what is spoken there: lmtp, or a protocol and, with "s", the same with implicit TLS."""

    def __init__(self, where: Path, protocols: Sequence[str], users: Sequence[str], extra: str) -> None:
        self.where = where
        self.socket = where / "run" / "lmtp"
        self.ports: dict[str, int] = {}
        text = CONFIG.format(protocols=" ".join(protocols), where=where)
        for name in protocols:
            port = self.ports[name] = free_port()
            if name == "lmtp":
                text += LMTP.format(port=port)
            else:
                secure_port = self.ports[name + "s"] = free_port()
                text += LOGIN.format(name=name, port=port, secure_port=secure_port)
        (where / "dovecot.conf").write_text(text + extra)
        (where / "mail").mkdir()
        shutil.chown(where / "mail", "mail", "mail")
        (where / "users").write_text("".join(f"{user}:8:8::{where}/mail/home::\n" for user in users))
        for name, octets in zip(("certificate", "key"), self_signed("dovecot.example.test"), strict=True):
            (where / name).write_bytes(octets)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [need("dovecot"), "-F", "-c", str(self.where / "dovecot.conf")], stderr=subprocess.DEVNULL
        )
        for port in self.ports.values():
            wait_for(lambda port=port: listening(port), "Dovecot")  # type: ignore[misc]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(WAIT_S)

    def log(self) -> str:
        return (self.where / "log").read_text(errors="replace")

    def mailbox(self, user: str) -> list[bytes]:
        """What was delivered to the user's INBOX."""
        return [file.read_bytes() for file in sorted((self.where / "mail" / user / "new").glob("*"))]


@contextmanager
def dovecot_server(*protocols: str, users: Sequence[str], extra: str = "") -> Iterator[DovecotServer]:
    """users: "name:password".  Skips the test where it cannot run."""
    need_root()
    need("dovecot")
    for name in protocols:
        need(f"/usr/lib/dovecot/{name}")
    where = Path(tempfile.mkdtemp())  # where the user "mail" may go
    where.chmod(0o755)
    server = DovecotServer(where, protocols, users, extra)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(where, ignore_errors=True)

"""getmail with one account and one Maildir: what it makes of a server's mail."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from interop_peers import need
from reachable import let_others_in

CONFIG = """\
[retriever]
type = Simple{protocol}Retriever
server = 127.0.0.1
port = {port}
username = {user}
password = {password}
{retriever}
[destination]
type = Maildir
path = {maildir}/
{owner}
[options]
delete = true
read_all = false
delivered_to = false
received = false
"""


def getmail(where: Path, protocol: str, port: int, user: str, password: str, retriever: str = "") -> Path:
    """The Maildir with all mail of the server, where there is none now.  protocol: POP3 or IMAP."""
    program = need("getmail")
    maildir = where / "Maildir"
    for part in ("cur", "new", "tmp"):
        (maildir / part).mkdir(parents=True)
    owner = ""
    if os.geteuid() == 0:  # it does not deliver as root
        owner = "user = nobody"
        for path in (maildir, *maildir.iterdir()):
            shutil.chown(path, "nobody")
        let_others_in(where)
    words = {"protocol": protocol, "port": port, "user": user, "password": password, "retriever": retriever}
    (where / "getmailrc").write_text(CONFIG.format(maildir=maildir, owner=owner, **words))
    done = subprocess.run(
        [program, "--getmaildir", str(where), "--rcfile", "getmailrc"],
        env={**os.environ, "HOME": str(where)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return maildir

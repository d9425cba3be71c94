"""Debian's Cyrus, unpacked beside Dovecot (their packages exclude each other) by tools/install_peers --bench.

Owns      Cyrus
Bugs      its passwords are not looked at (alwaystrue): a login costs it less than others
"""

from __future__ import annotations

import os
import shutil

from benches.peers.servers import PEERS, Missing, free_port
from benches.peers.stores import StoreServer

ROOT = PEERS / "cyrus"
PROGRAMS = "usr/lib/cyrus/bin"
USER = "mail"  # a name that every Debian knows


class Cyrus(StoreServer):
    """Prefork, processes reused, idled."""

    name = "cyrus"

    def command(self) -> list[str]:
        where = self.where
        programs = where / "root" / PROGRAMS
        if os.geteuid() != 0:
            raise Missing("Cyrus needs root")
        if not (ROOT / PROGRAMS / "imapd").exists():
            raise Missing("Cyrus is not installed (tools/install_peers --bench)")
        # Its processes are not root's, and have no way into a home directory.
        shutil.copytree(ROOT, where / "root", symlinks=True)
        self.imap_port, self.pop3_port = free_port(), free_port()
        lib, run = where / "lib", where / "run"
        for folder in ("lib", "run", "spool"):
            (where / folder).mkdir()
        for folder in ("db", "socket", "log", "proc", "user", "quota", "lock", "msg", "ptclient", "sieve"):
            (lib / folder).mkdir()
        imapd, master = where / "imapd.conf", where / "cyrus.conf"
        imapd.write_text(f"""\
cyrus_user: {USER}
configdirectory: {lib}
partition-default: {where}/spool
defaultpartition: default
proc_path: {run}/proc
mboxname_lockpath: {run}/lock
lmtpsocket: {run}/lmtp
idlesocket: {run}/idle
notifysocket: {run}/notify
master_pid_file: {run}/master.pid
servername: cyrus.example.test
virtdomains: userid
defaultdomain: example.test
altnamespace: yes
unixhierarchysep: yes
autocreate_users: anyone
autocreate_quota: 0
autocreate_post: yes
munge8bit: no
reject8bit: no
sasl_pwcheck_method: alwaystrue
sasl_mech_list: PLAIN LOGIN
allowplaintext: yes
imapidletimeout: 60
""")
        master.write_text(f"""\
START {{
  recover cmd="{programs}/ctl_cyrusdb -C {imapd} -r"
}}
DAEMON {{
  idled cmd="{programs}/idled -C {imapd}"
}}
SERVICES {{
  imap cmd="{programs}/imapd -C {imapd} -U 1000" listen="127.0.0.1:{self.imap_port}" prefork=2 maxchild=2500
  lmtp cmd="{programs}/lmtpd -C {imapd} -a" listen="127.0.0.1:{self.port}" prefork=2 maxchild=100
  pop3 cmd="{programs}/pop3d -C {imapd} -U 1000" listen="127.0.0.1:{self.pop3_port}" prefork=0 maxchild=100
}}
EVENTS {{
}}
""")
        for path in (where, imapd, master, lib, *lib.rglob("*"), run, where / "spool"):
            shutil.chown(path, USER, USER)
        return [str(programs / "master"), "-C", str(imapd), "-M", str(master), "-p", f"{run}/master.pid", "-D"]

    def environment(self) -> dict[str, str]:
        folders = [*self.where.glob("root/usr/lib/*-linux-gnu"), *self.where.glob("root/lib/*-linux-gnu")]
        return {"LD_LIBRARY_PATH": ":".join(str(path) for path in folders)}

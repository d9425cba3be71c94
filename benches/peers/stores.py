"""Servers that keep mail, with accounts: this product's store, and Dovecot with each of its formats.

Owns      StoreServer, GatewayStore, Dovecot*; STORES, what can be compared by LMTP and POP3
Files     everything below one directory on a real disk, mail included
Errors    Missing when the server is not installed
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benches.peers.servers import Missing, Server, find, free_port

USERS = 20
PASSWORD = "pass"
REUSE_USER = "mail"  # a name must be known to the system
DOVECOT_UID = 5555  # nobody's: Dovecot wants mail to belong to no system user


def user(number: int) -> str:
    return f"user{number}@example.test"


class StoreServer(Server):
    """LMTP on .port, POP3 on .pop3_port, IMAP on .imap_port; USERS accounts, all with PASSWORD."""

    pop3_port = 0
    imap_port = 0


class GatewayStore(StoreServer):
    """This product: fsync class, LMTP into the store, JSON log to a file."""

    name = "gateway"
    durability = "fsync"

    def command(self) -> list[str]:
        from gateway.accounts.database import Database
        from gateway.accounts.model import Account, Record

        self.pop3_port = free_port()
        config = self.where / "gateway.toml"
        config.write_text(f"""\
hostname = "bench.example.test"
state_dir = "{self.where}/state"
workers = {self.workers}
log = {{ file = "{self.where}/gateway.log", format = "json" }}
limits = {{ sessions_per_client = 20000, sessions = 20000 }}
spool = {{ messages_max = 10000000 }}

[[listen]]
service = "lmtp"
address = "127.0.0.1:{self.port}"
durability = "{self.durability}"

[[listen]]
service = "pop3"
address = "127.0.0.1:{self.pop3_port}"

[[route]]
domains = ["example.test"]
next_hop = ["store:"]
{self.more()}""")
        (self.where / "state").mkdir()
        with contextlib.closing(Database(self.where / "state" / "accounts.db")) as database:
            for number in range(USERS):  # a plain password, as Dovecot's below: no hash is compared
                database.add(Record(Account(user(number)), f"{{PLAIN}}{PASSWORD}"))
        serve = "import sys; from gateway.cli import main; sys.exit(main())"
        return [sys.executable, "-c", serve, "serve", "--config", str(config)]

    def more(self) -> str:
        """Of the configuration."""
        return ""


class GatewayImap(GatewayStore):
    """With IMAP."""

    def more(self) -> str:
        self.imap_port = free_port()
        return f"""
[[listen]]
service = "imap"
address = "127.0.0.1:{self.imap_port}"
"""


class GatewayInline(GatewayStore):
    """The same without a queue: 250 when the message is in the store."""

    name = "gateway-inline"
    durability = "inline"


class Dovecot(StoreServer):
    """Debian's Dovecot, tuned: login processes are reused, no DNS, no TLS, static passwords."""

    location = ""
    imap_service = ""  # of the process behind the login

    def command(self) -> list[str]:
        if os.geteuid() != 0:
            raise Missing("Dovecot needs root")
        program = find("dovecot")
        for part in ("pop3", "imap", "lmtp"):
            if not Path(f"/usr/lib/dovecot/{part}").exists():
                raise Missing(f"dovecot-{part}d is not installed (tools/install_peers)")
        self.pop3_port, self.imap_port = free_port(), free_port()
        mail = self.where / "mail"
        mail.mkdir()
        os.chown(mail, DOVECOT_UID, DOVECOT_UID)
        (self.where / "dovecot.conf").write_text(f"""\
base_dir = {self.where}/run
log_path = {self.where}/dovecot.log
protocols = imap pop3 lmtp
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain
first_valid_uid = {DOVECOT_UID}
first_valid_gid = {DOVECOT_UID}
mail_uid = {DOVECOT_UID}
mail_gid = {DOVECOT_UID}
mail_location = {self.location}
mail_max_userip_connections = 2000
default_process_limit = 2500
passdb {{
  driver = static
  args = password={{PLAIN}}{PASSWORD}
}}
userdb {{
  driver = static
  args = uid={DOVECOT_UID} gid={DOVECOT_UID} home={mail}/%u
}}
namespace inbox {{
  inbox = yes
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {self.port}
  }}
}}
service pop3-login {{
  service_count = 0
  process_min_avail = 2
  client_limit = 2000
  inet_listener pop3 {{
    port = {self.pop3_port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service imap-login {{
  service_count = 0
  process_min_avail = 2
  client_limit = 2000
  inet_listener imap {{
    port = {self.imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service imap {{
  process_limit = 2500
{self.imap_service}
}}
""")
        return [program, "-F", "-c", str(self.where / "dovecot.conf")]


class DovecotSdbox(Dovecot):
    name = "dovecot-sdbox"
    location = "sdbox:~/mail"


class DovecotMdbox(Dovecot):
    name = "dovecot-mdbox"
    location = "mdbox:~/mail"


class DovecotReuse(DovecotMdbox):
    """Its fastest login: an IMAP process serves many sessions, of one system user only."""

    name = "dovecot-mdbox-reuse"
    imap_service = f"  service_count = 1000\n  user = {REUSE_USER}"


class DovecotMaildir(Dovecot):
    name = "dovecot-maildir"
    location = "maildir:~/Maildir"


STORES: dict[str, Callable[..., StoreServer]] = {
    kind.name: kind
    for kind in (GatewayStore, GatewayInline, DovecotSdbox, DovecotMdbox, DovecotMaildir)
}

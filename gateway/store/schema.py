"""The tables of an account's database, and how those of earlier versions become them.

Owns      SCHEMA_VERSION, SCHEMA, UPGRADES
Flow      a new file gets SCHEMA; an older one gets UPGRADES[its version], and so on, in one transaction (database.py)
Bugs      a file that was upgraded cannot be read by the version that made it

mailbox 0 is the account itself, with an empty name: its uidnext is the next message key, its highestmodseq the last
mailbox id given, its uidvalidity the last one given, its history_modseq the last change of an annotation.  One page
less to write in every delivery.

flag_log: changes of flags that are not in the mailbox's chunks yet (index.py).

acl: who beside the owner may do what (acl.py).  annotation: see annotation.py; user is empty for /shared entries,
mailbox 0 has those of the server, value is NULL for one that was removed.
"""

from __future__ import annotations

SCHEMA_VERSION = 3

_ACL = """
CREATE TABLE acl(
  mailbox INTEGER, identifier TEXT, rights TEXT NOT NULL, PRIMARY KEY(mailbox, identifier)) WITHOUT ROWID;
CREATE TABLE annotation(
  mailbox INTEGER, user TEXT, entry TEXT, value BLOB, changed INTEGER NOT NULL,
  PRIMARY KEY(mailbox, user, entry)) WITHOUT ROWID;
CREATE INDEX subscription ON mailbox(name) WHERE subscribed=1;
"""

SCHEMA = (
    """
CREATE TABLE mailbox(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, uidvalidity INTEGER NOT NULL, uidnext INTEGER NOT NULL,
  highestmodseq INTEGER NOT NULL, messages INTEGER NOT NULL, unseen INTEGER NOT NULL, deleted INTEGER NOT NULL,
  octets INTEGER NOT NULL, recent_uid INTEGER NOT NULL, history_modseq INTEGER NOT NULL,
  selectable INTEGER NOT NULL, subscribed INTEGER NOT NULL, special_use TEXT NOT NULL, keywords TEXT NOT NULL,
  tail BLOB NOT NULL, flag_log BLOB NOT NULL DEFAULT x'');
CREATE TABLE chunk(id INTEGER PRIMARY KEY, head BLOB NOT NULL, records BLOB NOT NULL);
CREATE TABLE message(
  id INTEGER PRIMARY KEY, crc INTEGER NOT NULL, file TEXT, facts BLOB NOT NULL, header BLOB NOT NULL, body BLOB);
CREATE TABLE shared(message INTEGER PRIMARY KEY, copies INTEGER NOT NULL);
CREATE TABLE garbage(message INTEGER PRIMARY KEY);
CREATE TABLE expunged(
  mailbox INTEGER, modseq INTEGER, ranges BLOB NOT NULL, PRIMARY KEY(mailbox, modseq)) WITHOUT ROWID;
"""
    + _ACL
)

# version → what makes the next one of it
UPGRADES = {1: _ACL, 2: "ALTER TABLE mailbox ADD COLUMN flag_log BLOB NOT NULL DEFAULT x''"}

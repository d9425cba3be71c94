"""What the commands about accounts share: the database as its owner, names, passwords.

Owns      opened(), become_owner(), name_or_exit(), read_password(), new_password()
Security  a password is prompted for or read from standard input: an argument would stand in the list of processes
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from gateway.accounts.database import Database
from gateway.accounts.model import SourceError
from gateway.accounts.names import normal_user
from gateway.cli.common import TEMPORARY, USAGE, fail
from gateway.config_model import Config
from gateway.supervisor import identity

# Unambiguous when read aloud, and 16 of them are 79 bits.
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"


@contextmanager
def opened(config: Config) -> Iterator[Database]:
    """The accounts, read and written as the user that the workers run as."""
    try:
        become_owner(config)
        database = Database(config.accounts_file)
    except (OSError, SourceError) as error:
        fail(f"{error}; run it as the user of the gateway, or as root", TEMPORARY)
    try:
        yield database
    except SourceError as error:
        fail(f"{error}; try again", TEMPORARY)
    finally:
        database.close()


def become_owner(config: Config) -> None:
    """As root: files we make must be those of the workers.  Raises OSError."""
    uid, gid = identity(config)
    if not config.state_dir.is_dir():
        config.state_dir.mkdir(mode=0o750, parents=True)
        if uid >= 0:
            os.chown(config.state_dir, uid, gid)
    owner = config.state_dir.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
        os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)


def name_or_exit(config: Config, text: str, *, catch_all: bool = False) -> str:
    """The normal form of a name, or of "@domain"; exit 2 when it is none."""
    default = config.accounts.default_domain
    if catch_all and text.startswith("@"):
        name = normal_user("any" + text).removeprefix("any")
    else:
        name = normal_user(text, default)
    if not name:
        hint = "" if "@" in text or default else ", or set accounts.default_domain"
        fail(f'"{text}" is no local-part@domain{hint}', USAGE)
    return name


def read_password(from_stdin: bool) -> str:
    """Asked for twice on a terminal, else the first line of standard input."""
    if not from_stdin and sys.stdin.isatty():
        password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
        return password
    password = sys.stdin.readline().removesuffix("\n").removesuffix("\r")
    if not password:
        fail("no password on standard input; give it as one line, or run this on a terminal", USAGE)
    return password


def new_password() -> str:
    """A random one that people can copy by hand: four groups of four."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(4))

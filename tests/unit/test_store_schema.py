"""Accounts that earlier versions made."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest
from test_store_account import SETTINGS, deliver, message

from gateway.store.account import AccountFile
from gateway.store.check import check_account
from gateway.store.errors import StoreError
from gateway.store.schema import SCHEMA_VERSION

DUMP = "SELECT name, sql FROM sqlite_schema ORDER BY name"


def make(directory: Path) -> None:
    file = AccountFile(directory, SETTINGS, create=True)
    deliver(file, message(1), message(2))
    file.close()


def as_version_1(directory: Path) -> None:
    with apsw.Connection(str(directory / "store.db")) as connection:
        connection.execute(
            "DROP TABLE acl; DROP TABLE annotation; DROP INDEX subscription; "
            "ALTER TABLE mailbox DROP COLUMN flag_log; PRAGMA user_version = 1"
        )
    connection.close()


def schema(directory: Path) -> list[tuple[str, str]]:
    connection = apsw.Connection(str(directory / "store.db"))
    try:
        return list(connection.execute(DUMP))
    finally:
        connection.close()


def test_version_1_is_upgraded_in_place(tmp_path: Path) -> None:
    make(tmp_path)
    wanted = schema(tmp_path)
    as_version_1(tmp_path)
    assert schema(tmp_path) != wanted
    file = AccountFile(tmp_path, SETTINGS)
    assert file.mailbox("INBOX").messages == 2
    assert file.database.row("PRAGMA user_version") == (SCHEMA_VERSION,)
    file.close()
    assert schema(tmp_path) == wanted
    assert check_account(tmp_path, SETTINGS).clean


def test_a_later_version_is_left_alone(tmp_path: Path) -> None:
    make(tmp_path)
    connection = apsw.Connection(str(tmp_path / "store.db"))
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match=f"format {SCHEMA_VERSION + 1}"):
        AccountFile(tmp_path, SETTINGS)


def test_a_damaged_file_of_version_1_can_be_saved(tmp_path: Path) -> None:
    make(tmp_path)
    as_version_1(tmp_path)
    (tmp_path / "store.db-wal").unlink(missing_ok=True)
    path = tmp_path / "store.db"
    octets = bytearray(path.read_bytes())
    octets[100:110] = b"\xff" * 10  # the first page's header of its B-tree
    path.write_bytes(octets)
    report = check_account(tmp_path, SETTINGS)
    assert not any("acl" in finding.what for finding in report.findings)

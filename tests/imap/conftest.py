"""A gateway for each module of dialogues; tests make accounts of their own or clean up."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from imap.rig import ImapGateway

_number = count(1)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImapGateway]:
    """Running, without accounts."""
    with ImapGateway(tmp_path_factory.mktemp("imap")) as running:
        yield running


@pytest.fixture
def account(gateway: ImapGateway) -> str:
    """A new account's name, with the password of imap.rig."""
    name = f"user{next(_number)}@example.test"
    gateway.add_account(name)
    return name

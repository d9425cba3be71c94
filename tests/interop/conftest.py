"""Fixtures: a whole gateway, sinks, Postfix and its smtp-sink.  Each is gone when its test ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from imap_house import ImapHouse
from interop_peers import (
    RunningGateway,
    RunningPostfix,
    RunningSink,
    listener,
    listening,
    need,
    need_root,
    wait_for,
)
from smtp_blaster.sink import SinkPlan


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.interop)


@pytest.fixture
def sink_factory() -> Iterator[Callable[..., RunningSink]]:
    sinks: list[RunningSink] = []

    def make(**plan: Any) -> RunningSink:
        sinks.append(RunningSink(SinkPlan(**plan)))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.stop()


@pytest.fixture
def sink(sink_factory: Callable[..., RunningSink]) -> RunningSink:
    return sink_factory()


@pytest.fixture
def gateway_factory(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> Iterator[Callable[..., RunningGateway]]:
    """gateway_factory(routes=[route(...)], listen=[listener(...)], **other sections)."""
    running: list[RunningGateway] = []

    def make(
        routes: list[dict[str, Any]], listen: list[dict[str, Any]] | None = None, **sections: Any
    ) -> RunningGateway:
        where = tmp_path / f"gateway-{len(running)}"
        where.mkdir()
        config = {
            "tls": {"certificate": str(certificate[0]), "key": str(certificate[1])},
            "queue": {"retry_s": [1.0], "connect_retry_s": [0.5]},
            **sections,
            "listen": listen or [listener()],
            "route": routes,
        }
        running.append(RunningGateway(where, config))
        return running[-1]

    yield make
    try:
        for gateway in running:
            gateway.stop()
    finally:
        for gateway in running:
            gateway.kill()


# -- Postfix's smtp-sink as a next hop that misbehaves ---------------------------------------------


@pytest.fixture
def smtp_sink(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """smtp_sink(port, *switches): running afterwards."""
    program = need("smtp-sink")
    running: list[subprocess.Popen[bytes]] = []

    def make(port: int, *switches: str) -> subprocess.Popen[bytes]:
        user = ["-u", "postfix"] if os.geteuid() == 0 else []
        process = subprocess.Popen(
            [program, *user, *switches, f"127.0.0.1:{port}", "128"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        running.append(process)
        wait_for(lambda: listening(port) or process.poll() is not None, "smtp-sink")
        assert process.poll() is None, f"smtp-sink {switches} ended with {process.returncode}"
        return process

    yield make
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def postfix_factory(certificate: tuple[Path, Path]) -> Iterator[Callable[..., RunningPostfix]]:
    """postfix_factory(relay_port, extra="main.cf lines"): a Postfix that relays all mail there."""
    need("postfix")
    need_root()
    # Postfix's daemons have users of their own and must be able to enter: not below pytest's
    # private directory.
    where = Path(tempfile.mkdtemp())
    where.chmod(0o755)
    files = (Path(shutil.copy(certificate[0], where)), Path(shutil.copy(certificate[1], where)))
    running: list[RunningPostfix] = []

    def make(relay_port: int, extra: str = "") -> RunningPostfix:
        place = where / str(len(running))
        running.append(RunningPostfix(place, relay_port, files, extra))
        return running[-1]

    yield make
    for postfix in running:
        postfix.stop()
    shutil.rmtree(where, ignore_errors=True)


@pytest.fixture(scope="module")
def house(
    tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]
) -> Iterator[ImapHouse]:
    running = ImapHouse(tmp_path_factory.mktemp("house"), certificate)
    yield running
    try:
        running.stop()
    finally:
        running.kill()


@pytest.fixture
def account(house: ImapHouse) -> str:
    return house.add_account()

"""The log: what a line holds, and that its reader can never stop us."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import pty
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.log import FLUSH_EVENTS, Log, LoggingBridge, bridge_logging, wants_text
from gateway.log_sink import PIPE_BUF, Sink


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        os.close(fd)


def lines_of(fd: int) -> list[dict[str, Any]]:
    os.set_blocking(fd, False)
    data = b""
    try:
        while piece := os.read(fd, 1 << 20):
            data += piece
    except BlockingIOError:
        pass
    return [json.loads(line) for line in data.splitlines()]


def test_a_line_has_time_level_event_worker_and_fields_in_this_order(pipe: tuple[int, int]) -> None:
    log = Log(Sink(pipe[1]), worker=3)
    log.event("accepted", queue_id="01", client="192.0.2.1:4", tls=None, recipients=["a@b"])
    log.event("bare")
    first, second = lines_of(pipe[0])
    assert list(first) == [
        "time", "level", "event", "worker", "queue_id", "client", "tls", "recipients",
    ]  # fmt: skip
    assert first["time"].endswith("Z") and len(first["time"]) == 24
    assert (first["level"], first["worker"]) == ("info", 3)
    assert list(second) == ["time", "level", "event", "worker"]


def test_a_value_that_json_does_not_know_is_shown_and_not_lost(pipe: tuple[int, int]) -> None:
    log = Log(Sink(pipe[1]))
    log.event("odd", path=Path("/x"), octets=b"\xff", keys={1: 2}, lone="\ud800", huge=2**70)
    log.event("next")
    lines = lines_of(pipe[0])
    assert lines[-1]["event"] == "next"
    assert lines[0]["path"] == "/x"
    assert lines[0]["octets"] == "ff"
    assert lines[0]["lone"] == "\\ud800"
    assert lines[0]["huge"] == str(2**70)


def test_levels(pipe: tuple[int, int]) -> None:
    log = Log(Sink(pipe[1]), level="warning")
    log.debug("no")
    log.event("no")
    log.warning("yes")
    try:
        raise ValueError("the reason")
    except ValueError:
        log.exception("failed", queue_id="01")
    warned, failed = lines_of(pipe[0])
    assert warned["level"] == "warning"
    assert failed["level"] == "error"
    assert "ValueError: the reason" in failed["traceback"]


def test_lines_about_messages_go_to_the_history_whatever_the_level(pipe: tuple[int, int]) -> None:
    kept: list[bytes] = []
    log = Log(Sink(pipe[1]), level="error", text=True, history=kept.extend)
    log.event("accepted", queue_id="01")
    log.event("connected", session="s")
    assert [json.loads(line)["queue_id"] for line in kept] == ["01"]
    assert os.set_blocking(pipe[0], False) is None
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)


def test_text_is_for_people(pipe: tuple[int, int]) -> None:
    log = Log(Sink(pipe[1]), worker=1, text=True)
    log.event("refused", forward_path="a@b", reply="550 5.1.1 no \x1b[31m such user")
    text = os.read(pipe[0], 4096).decode()
    assert "refused" in text
    assert "forward_path=a@b" in text
    assert (
        r'reply="550 5.1.1 no \u001b[31m such user"' in text
    )  # a peer does not colour our terminal


def test_with_a_loop_lines_wait_for_company() -> None:
    reader, writer = os.pipe()

    async def run() -> tuple[int, int]:
        log = Log(Sink(writer), flush_s=0.01)
        log.attach(asyncio.get_running_loop())
        log.event("one")
        log.event("two")
        before = len(lines_of(reader))
        while not (found := lines_of(reader)):
            await asyncio.sleep(0.005)
        for number in range(FLUSH_EVENTS):  # too many to wait
            log.event("more", number=number, filler="x" * 20)
        at_once = len(lines_of(reader))
        assert at_once >= 100
        return before, len(found)

    assert asyncio.run(run()) == (0, 2)
    os.close(reader)
    os.close(writer)


def test_a_reader_that_sleeps_loses_lines_and_stops_nobody(pipe: tuple[int, int]) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4096)
    sink = Sink(pipe[1], backlog_octets=20_000)
    log = Log(sink)
    for number in range(2000):
        log.event("many", number=number)
    assert log.lost_lines > 0
    seen = []
    for _ in range(200):
        seen += lines_of(pipe[0])
        sink.write([])
    # The count of what is missing is a line of its own, and together they are all.
    lost = sum(line["lines"] for line in seen if line["event"] == "log_lost")
    numbers = [line["number"] for line in seen if line["event"] == "many"]
    assert lost == log.lost_lines
    assert len(numbers) + lost == 2000
    assert numbers == sorted(numbers)
    assert os.get_blocking(pipe[1])  # the inherited description is as it was


def test_workers_that_share_a_pipe_write_whole_lines(pipe: tuple[int, int]) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 1 << 20)
    logs = [Log(Sink(pipe[1]), worker=worker) for worker in range(2)]
    for number in range(500):
        for log in logs:
            log._add(20, "line", {"number": number, "filler": "x" * 100})
    assert len(lines_of(pipe[0])) == 1000
    assert PIPE_BUF == 4096


def test_a_pipe_that_nobody_reads_any_more_is_no_error() -> None:
    reader, writer = os.pipe()
    log = Log(Sink(writer))
    os.close(reader)
    log.event("lost")
    assert log.lost_lines == 1
    log.close()
    os.close(writer)


def test_a_full_disk_loses_lines_and_is_no_error() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    log = Log(Sink(fd))
    log.event("lost")
    assert log.lost_lines == 1
    os.close(fd)


def test_a_socket_is_never_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        log = Log(Sink(ours.fileno(), backlog_octets=10_000))
        for number in range(5000):
            log.event("many", number=number, filler="x" * 100)
        assert log.lost_lines > 0
        assert theirs.recv(20).startswith(b'{"time":')
        log.close()


def test_reopen_goes_on_in_the_new_file(tmp_path: Path) -> None:
    def opened(name: str) -> int:
        return os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    log = Log(Sink(opened("a"), own=True))
    log.event("one")
    log.reopen(opened("b"))
    log.event("two")
    log.close()
    assert b"one" in (tmp_path / "a").read_bytes()
    assert b"two" in (tmp_path / "b").read_bytes()


def test_the_logging_module_ends_up_here(pipe: tuple[int, int]) -> None:
    log = Log(Sink(pipe[1]))
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    try:
        bridge_logging(log)
        assert isinstance(root.handlers[0], LoggingBridge)
        logging.getLogger("asyncio").warning("slow %s", "task")
        logging.getLogger("x").info("wrong %d", "format")
        try:
            raise OSError("disk")
        except OSError:
            logging.getLogger("y").exception("failed")
    finally:
        root.handlers[:], level = before[0], before[1]
        root.setLevel(level)
        logging.captureWarnings(False)
    slow, wrong, failed = lines_of(pipe[0])
    assert (slow["level"], slow["logger"], slow["message"]) == ("warning", "asyncio", "slow task")
    assert wrong["message"] == "wrong %d"
    assert "OSError: disk" in failed["traceback"]


def test_threads_may_use_the_logging_module(pipe: tuple[int, int]) -> None:
    log = Log(Sink(pipe[1]), flush_s=0.0)
    logger = logging.Logger("thread")
    logger.addHandler(LoggingBridge(log))

    async def run() -> None:
        log.attach(asyncio.get_running_loop())
        await asyncio.to_thread(logger.warning, "from a thread")
        logger.warning("from the loop")
        logger.debug("not at this level")
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert [line["message"] for line in lines_of(pipe[0])] == ["from a thread", "from the loop"]
    threading.Thread(target=logger.warning, args=("after the loop",)).start()
    log.close()
    logger.warning("after the end")  # lost, and no error


def test_auto_is_text_on_a_terminal_only(pipe: tuple[int, int]) -> None:
    assert not wants_text("auto", pipe[1])
    assert wants_text("text", pipe[1])
    ours, theirs = pty.openpty()
    assert wants_text("auto", theirs)
    assert not wants_text("json", theirs)
    log = Log(Sink(theirs), text=True)
    log.event("hello")
    assert b"hello" in os.read(ours, 1000)
    log.close()
    os.close(ours)
    os.close(theirs)

"""The history of messages: files, their retention, and finding things in them."""

from __future__ import annotations

import os
from pathlib import Path

import orjson

from gateway.history import History, files_of, find, lines_about, queue_ids


def line(queue_id: str, **fields: object) -> bytes:
    return orjson.dumps({"queue_id": queue_id, **fields}) + b"\n"


class Clock:
    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def history(directory: Path, clock: Clock, worker: int = 0, **bounds: float) -> History:
    settings = {"file_octets": 1000, "keep_s": 1000.0, "keep_octets": 10_000} | bounds
    return History(
        directory,
        worker,
        file_octets=int(settings["file_octets"]),
        keep_s=settings["keep_s"],
        keep_octets=int(settings["keep_octets"]),
        clock=clock,
    )


def test_what_was_written_is_found_over_files_and_workers(tmp_path: Path) -> None:
    clock = Clock()
    first, second = history(tmp_path, clock), history(tmp_path, clock, worker=1)
    for number in range(50):
        clock.now += 1
        first.write([line(f"A{number:03}", event="accepted", message_id=f"<{number}@x>")])
        second.write([line(f"B{number:03}", event="accepted", forward_paths=["Bob@Example.org"])])
    assert len(files_of(tmp_path, 0)) > 1
    assert [found["queue_id"] for found in find(tmp_path, "<7@x>")] == ["A007"]
    assert queue_ids(tmp_path, "bob@example.ORG", ["forward_paths"], 3) == ["B047", "B048", "B049"]
    assert queue_ids(tmp_path, "bob@example.org", ["forward_path"], 3) == []
    assert list(find(tmp_path, "absent")) == []


def test_the_life_of_a_message_is_in_order_and_knows_its_reports(tmp_path: Path) -> None:
    one = history(tmp_path, Clock())
    one.write(
        [
            line("B", time="3", event="accepted", report_of="A"),
            line("A", time="1", event="accepted"),
            line("A", time="2", event="bounced", reply='550 no "such" user'),
            line("C", time="2", event="accepted", reply="about A"),
        ]
    )
    found = lines_about(tmp_path, "A")
    assert [(entry["queue_id"], entry["event"]) for entry in found] == [
        ("A", "accepted"),
        ("A", "bounced"),
        ("B", "accepted"),
    ]
    assert next(find(tmp_path, 'no "such" user'))["queue_id"] == "A"  # found as JSON writes it


def test_a_new_day_begins_a_new_file(tmp_path: Path) -> None:
    clock = Clock(1_700_006_399.0)  # 2023-11-14T23:59:59Z
    one = history(tmp_path, clock)
    one.write([line("A")])
    clock.now += 1
    one.write([line("B")])
    assert len(files_of(tmp_path)) == 2


def test_old_files_and_too_much_of_them_go(tmp_path: Path) -> None:
    clock = Clock()
    one = history(tmp_path, clock, file_octets=100, keep_octets=1000, keep_s=10_000.0)
    for number in range(100):
        clock.now += 700  # cleaning happens now and then
        one.write([line(f"A{number:03}", filler="x" * 100)])
        newest = files_of(tmp_path)[-1]
        os.utime(newest, (clock.now, clock.now))
    assert sum(path.stat().st_size for path in files_of(tmp_path)) <= 1200
    assert list(find(tmp_path, "A099"))
    assert not list(find(tmp_path, "A050"))
    clock.now += 100_000
    one.write([line("LAST")])
    assert [found["queue_id"] for found in find(tmp_path, "A")] == ["LAST"]


def test_a_torn_line_is_skipped(tmp_path: Path) -> None:
    one = history(tmp_path, Clock())
    one.write([line("A"), b'{"queue_id":"A","ev'])
    assert len(list(find(tmp_path, '"A"'[1:-1]))) == 1
    one.write([b"ent\n", line("A")])
    (tmp_path / "0-empty.jsonl").touch()
    assert len(list(find(tmp_path, "A"))) == 2


def test_an_unwritable_directory_loses_lines_and_raises_nothing(tmp_path: Path) -> None:
    clock = Clock()
    one = history(tmp_path / "absent", clock)
    one.write([line("A"), line("B")])
    assert one.lost_lines == 2
    (tmp_path / "absent").mkdir()
    one.write([line("A")])
    assert one.lost_lines == 3  # not tried again at once
    clock.now += 11
    one.write([line("A")])
    assert len(list(find(tmp_path / "absent", "A"))) == 1


def test_files_that_ended_before_are_not_read(tmp_path: Path) -> None:
    clock = Clock()
    one = history(tmp_path, clock)
    one.write([line("A")])
    assert list(find(tmp_path, "A", after=0.0))
    assert not list(find(tmp_path, "A", after=files_of(tmp_path)[0].stat().st_mtime + 1))

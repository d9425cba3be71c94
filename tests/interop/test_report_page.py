"""The report in a real browser without a network: it loads nothing, says nothing, and fits a phone."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from browser import Browser, Opened
from interop_peers import need
from smtp_blaster import report, result
from smtp_blaster.sink import Fault, Sink, SinkPlan

TOOLS = Path(report.__file__).parent.parent
MARKS = [{"t": 0.1, "text": "first"}, {"t": 0.3, "text": "a word as long as " + "x" * 80}]


async def measured(where: Path, *words: str) -> result.Run:
    """A run of the command against a sink that refuses, drops and is late."""
    faults = ("rcpt=452:4.5.3 " + "too-many-" * 20 + "@0.1", "content=drop@0.01", "content=delay:~1ms")
    sink = Sink(SinkPlan(faults=tuple(map(Fault.parse, faults))))
    await sink.start()
    saved = where / f"run{len(words)}.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "smtp_blaster", "smtp", f"127.0.0.1:{sink.port}", "--save", str(saved)),
        *("--connections", "4", "--messages", "300", "--rate", "500", "--json", *words),
        cwd=TOOLS,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    await sink.stop()
    assert process.returncode == 0, said
    run = result.load(saved)
    assert json.loads(said)["totals"]["accepted"] == run.totals.accepted > 100
    return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("pages")

    async def measure() -> tuple[result.Run, result.Run]:
        return await measured(where), await measured(where, "--pipelining")

    first, second = asyncio.run(measure())
    series = {"memory": {"unit": "octets", "t": [0, 1], "v": [1e8, 2e8]}}
    first.server = {"series": series, "marks": MARKS}
    first.ledger = {"accepted": 1, "delivered": 0, "lost": 1, "lost_ids": ["y" * 200]}
    report.write(where / "one.html", [("one", first)])
    report.write(where / "two.html", [("one", first), ("a-name-that-is-rather-long-for-a-phone", second)])
    return {"one": where / "one.html", "two": where / "two.html"}


@pytest.mark.parametrize("name", ["one", "two"])
def test_in_a_browser(pages, name):
    program = need("chromium")

    async def look() -> list[tuple[int, bool, Opened]]:
        async with Browser(program) as browser:
            return [
                (width, dark, await browser.open(pages[name], width=width, dark=dark))
                for width in (390, 1280)
                for dark in (False, True)
            ]

    pictures = set()
    for width, dark, opened in asyncio.run(look()):
        assert opened.messages == [], (width, dark)
        assert opened.requests == []
        assert opened.page_width <= width
        pictures.add(opened.picture)
    assert len(pictures) == 4  # light is not dark, and a phone is no desk

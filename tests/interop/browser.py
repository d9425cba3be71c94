"""A headless Chromium without a network, driven by its DevTools protocol: what a page looks like and loads.

Owns      Browser (one process, one page), Opened (what came of opening a page)
Flow      open() → DevTools commands over one WebSocket → Opened
Limits    WAIT_S for every answer
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

WAIT_S = 60.0
# Everything that would call home, and a name server that knows nothing.
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--remote-debugging-port=0", "--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars",
)  # fmt: skip


@dataclass
class Opened:
    messages: list[str] = field(default_factory=list)  # of the console, and of what the browser blocked
    requests: list[str] = field(default_factory=list)  # addresses, the page's own left out
    page_width: int = 0  # CSS pixels that its content takes
    picture: bytes = b""  # PNG of all of it


class Browser:
    """async with Browser(program) as browser."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._opened = Opened()
        self._loaded = asyncio.Event()

    async def __aenter__(self) -> Browser:
        async with contextlib.AsyncExitStack() as stack:
            await self._begin(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _begin(self, stack: contextlib.AsyncExitStack) -> None:
        profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        self._process = await asyncio.create_subprocess_exec(
            *(self._program, *SWITCHES, f"--user-data-dir={profile}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        stack.push_async_callback(self._end)
        async with asyncio.timeout(WAIT_S):
            address = await self._address()
        session = await stack.enter_async_context(aiohttp.ClientSession())
        self._socket = await session.ws_connect(address, max_msg_size=0)
        stack.callback(asyncio.create_task(self._listen()).cancel)
        targets = (await self._ask("Target.getTargets"))["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._page = (await self._ask("Target.attachToTarget", targetId=page, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._ask(f"{domain}.enable")
        nothing = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        await self._ask("Network.emulateNetworkConditions", **nothing)

    async def open(self, page: Path, *, width: int, dark: bool = False) -> Opened:
        """The page at this width, all of its <details> open."""
        self._opened, self._loaded = Opened(), asyncio.Event()
        how = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        await self._ask("Emulation.setDeviceMetricsOverride", **how)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self._ask("Emulation.setEmulatedMedia", features=[scheme])
        await self._ask("Page.navigate", url=page.resolve().as_uri())
        async with asyncio.timeout(WAIT_S):
            await self._loaded.wait()
        script = (
            "document.querySelectorAll('details').forEach(d => d.open = true);"
            "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
        )
        answer = await self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        self._opened.page_width = answer["result"]["value"]
        shot = await self._ask("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        self._opened.picture = base64.b64decode(shot["data"])
        return self._opened

    async def _address(self) -> str:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            if b"DevTools listening on" in line:
                return line.decode().split()[-1]
        raise RuntimeError(f"{self._program} ended with {await self._process.wait()}")

    async def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        asked = {"id": number, "method": method, "params": params}
        if not method.startswith("Target."):
            asked["sessionId"] = self._page
        await self._socket.send_json(asked)
        return await asyncio.wait_for(self._answers[number], WAIT_S)

    async def _listen(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                answer = self._answers.pop(said["id"])
                if "error" in said:
                    answer.set_exception(RuntimeError(str(said["error"])))
                else:
                    answer.set_result(said["result"])
            else:
                self._hear(said["method"], said["params"])

    def _hear(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Runtime.consoleAPICalled":
            self._opened.messages.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self._opened.messages.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self._opened.messages.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent" and params.get("type") != "Document":
            self._opened.requests.append(params["request"]["url"])

    async def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

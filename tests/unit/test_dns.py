"""net/dns.py: the system's resolver for real, and its failures."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from gateway.net.dns import DnsError, Resolver


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 20)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


def test_literals_and_localhost() -> None:
    async def main() -> None:
        resolver = Resolver()
        assert await resolver.resolve("192.0.2.1", 25) == [(socket.AF_INET, ("192.0.2.1", 25))]
        assert await resolver.resolve("::1", 25) == [(socket.AF_INET6, ("::1", 25, 0, 0))]
        found = await resolver.resolve("localhost", 2525)
        assert (socket.AF_INET, ("127.0.0.1", 2525)) in found
        for family, address in found:  # in the form that connect() takes
            with socket.socket(family) as sock:
                sock.setblocking(False)
                sock.connect_ex(address)

    run(main)


class Script:
    """Stands in for getaddrinfo: what a name server far away would say, and when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: object, delay_s: float = 0) -> None:
        self.asked: list[str] = []

        async def getaddrinfo(host: str, port: int, **_: object) -> object:
            self.asked.append(host)
            await asyncio.sleep(delay_s)
            if isinstance(answer, Exception):
                raise answer
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, port))]

        self.getaddrinfo = getaddrinfo
        self.patch = monkeypatch

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        self.patch.setattr(asyncio, "get_running_loop", lambda: _Loop(loop, self.getaddrinfo))


class _Loop:
    def __init__(self, loop: asyncio.AbstractEventLoop, getaddrinfo: object) -> None:
        self._loop = loop
        self.getaddrinfo = getaddrinfo

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)


def test_answers_are_kept_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, "192.0.2.1", 0.02)

    async def main() -> None:
        script.install()
        resolver = Resolver(cache_max=2)
        found = await asyncio.gather(*(resolver.resolve("MX.example", 25) for _ in range(5)))
        assert found == [[(socket.AF_INET, ("192.0.2.1", 25))]] * 5
        await resolver.resolve("mx.example", 25)
        assert script.asked == ["mx.example"]
        await resolver.resolve("b.example", 25)
        await resolver.resolve("c.example", 25)
        await resolver.resolve("mx.example", 25)  # the oldest had made room
        assert script.asked == ["mx.example", "b.example", "c.example", "mx.example"]

    run(main)


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), False),
        (OSError("out of descriptors"), False),
    ],
)
def test_failures(monkeypatch: pytest.MonkeyPatch, error: Exception, permanent: bool) -> None:
    script = Script(monkeypatch, error)

    async def main() -> None:
        script.install()
        resolver = Resolver()
        for _ in range(2):  # a failure is not kept
            with pytest.raises(DnsError) as caught:
                await resolver.resolve("mx.example", 25)
            assert caught.value.permanent is permanent
        assert len(script.asked) == 2

    run(main)


def test_a_slow_answer_is_a_transient_error_and_kept_for_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script(monkeypatch, "192.0.2.1", 0.1)

    async def main() -> None:
        script.install()
        resolver = Resolver(timeout_s=0.01)
        with pytest.raises(DnsError) as caught:
            await resolver.resolve("mx.example", 25)
        assert not caught.value.permanent
        await asyncio.sleep(0.15)
        assert await resolver.resolve("mx.example", 25)
        assert len(script.asked) == 1

    run(main)


def test_a_label_too_long_is_an_error_of_ours() -> None:
    async def main() -> None:
        with pytest.raises(DnsError):
            await Resolver().resolve("a" * 64 + ".example", 25)

    run(main)


def test_client_names_are_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        assert await Resolver().client_name("127.0.0.1") in ("localhost", socket.gethostname())
        assert await Resolver(timeout_s=0.5).client_name("192.0.2.77") == ""

    run(main)

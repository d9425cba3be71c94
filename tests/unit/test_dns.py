"""net/dns.py: the system's resolver for real, and its failures."""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from gateway.net import dns
from gateway.net.dns import DnsError, Resolver


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 60)

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
        self.answer = answer
        self.delay_s = delay_s
        monkeypatch.setattr(socket, "getaddrinfo", self.getaddrinfo)

    def getaddrinfo(self, host: str, port: int, **_: object) -> object:
        self.asked.append(host)
        time.sleep(self.delay_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.answer, port))]


def test_answers_are_kept_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(monkeypatch, "192.0.2.1", 0.02)

    async def main() -> None:
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
        resolver = Resolver(timeout_s=0.01)
        with pytest.raises(DnsError) as caught:
            await resolver.resolve("mx.example", 25)
        assert not caught.value.permanent
        await asyncio.sleep(0.15)
        assert await resolver.resolve("mx.example", 25)
        assert len(script.asked) == 1

    run(main)


@pytest.mark.parametrize("slow", [False, True], ids=["failure", "silence"])
def test_stale_answers_are_better_than_none(monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """RFC 8767: while name servers fail, and no longer than stale_s; a name that is gone is gone."""
    script = Script(monkeypatch, "192.0.2.1")
    monkeypatch.setattr(dns, "POSITIVE_S", 0.0)
    monkeypatch.setattr(dns, "STALE_AGAIN_S", 0.0)

    async def main() -> None:
        resolver = Resolver(timeout_s=0.05, stale_s=3600.0)
        impatient = Resolver(timeout_s=0.05, stale_s=0.0)
        known = await resolver.resolve("mx.example", 25)
        await impatient.resolve("mx.example", 25)
        script.answer = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        script.delay_s = 0.2 if slow else 0.0
        assert await resolver.resolve("mx.example", 25) == known
        with pytest.raises(DnsError):
            await impatient.resolve("mx.example", 25)
        await asyncio.sleep(script.delay_s)
        script.answer = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        script.delay_s = 0.0
        with pytest.raises(DnsError) as caught:
            await resolver.resolve("mx.example", 25)
        assert caught.value.permanent

    run(main)


def test_a_silent_server_does_not_keep_other_names_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def getaddrinfo(host: str, port: int, **_: object) -> object:
        if host.startswith("silent"):
            over.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def main() -> None:
        resolver = Resolver(timeout_s=0.1, threads=4)
        silent = [resolver.resolve(f"silent{number}.example", 25) for number in range(3)]
        asking = asyncio.gather(*silent, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert await resolver.resolve("mx.example", 25)
        assert all(isinstance(error, DnsError) for error in await asking)
        over.set()
        resolver.close()

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

"""Two workers of one gateway, with a port each: what happens at one is seen at the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

from harness import BASE
from imap.rig import ALICE, PASSWORD, ImapClient, ImapGateway

from gateway.app import Worker
from gateway.net.listener import bind

SECOND = """
[[listen]]
service = "imap"
address = "127.0.0.1:PORT"
"""


class TwoWorkers(ImapGateway):
    """ports[0] is the first one's, ports[1] the second one's."""

    def __init__(self, directory: Path, toml: str = "") -> None:
        super().__init__(directory, SECOND + toml, BASE.replace("workers = 1", "workers = 2"))

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        workers: list[Worker] = []
        try:
            for index, listen in enumerate(self.config.listen):
                sockets = {index: [bind(listen.address, reuse_port=True, mode=listen.mode)]}
                workers.append(Worker(self.config, sockets, index=index))
                await workers[-1].start()
            self.worker = workers[0]
        except BaseException as error:
            self._failure = error
            self._ready.set()
            return
        self._ready.set()
        await self._stop.wait()
        for worker in workers:
            await worker.stop()

    def login_at(self, worker: int, account: str = ALICE) -> ImapClient:
        client = self.connect(self.ports[worker])
        assert client.ok(f'LOGIN {account} "{PASSWORD}"') == []
        return client

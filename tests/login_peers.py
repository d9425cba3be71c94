"""Whom a login needs beside client and gateway: an issuer of tokens, an authority for clients' certificates."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa


class Issuer:
    """An issuer of tokens: introspection (RFC 7662) and its keys (RFC 7517)."""

    def __init__(self) -> None:
        self.active: dict[str, dict[str, Any]] = {}
        self.keys: list[dict[str, Any]] = []
        self.asked = 0
        self.status = 200

    async def start(self) -> str:
        app = web.Application()
        app.router.add_post("/introspect", self.introspect)
        app.router.add_get("/keys", self.give_keys)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def introspect(self, request: web.Request) -> web.Response:
        self.asked += 1
        assert request.headers["Authorization"].startswith("Basic ")
        form = await request.post()
        claims = self.active.get(str(form["token"]))
        body = {"active": False} if claims is None else {"active": True, **claims}
        return web.json_response(body, status=self.status)

    async def give_keys(self, _request: web.Request) -> web.Response:
        self.asked += 1
        return web.json_response({"keys": self.keys}, status=self.status)

    def add_key(self, key: Any, key_id: str) -> None:
        from jwt.algorithms import ECAlgorithm, RSAAlgorithm

        kind = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
        self.keys.append({**json.loads(kind.to_jwk(key.public_key())), "kid": key_id})


class RunningIssuer(Issuer):
    """The same on a loop of its own: for a gateway that has one too."""

    def __enter__(self) -> RunningIssuer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self.start(), self._loop).result(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def close(self) -> None:
        """Nobody can ask it any more."""
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self._loop).result(60)


def bearer(token: str, user: str = "alice@example.test") -> bytes:
    return f"n,a={user},\x01auth=Bearer {token}\x01\x01".encode()


def client_certificate(where: Path, address: str) -> tuple[Path, Path]:
    """An authority's file, and a certificate with its key that it made for this address."""

    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=where)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=CA", "-days", "2")
    run("req", *new, "-keyout", "c.key", "-out", "c.csr", "-subj", "/CN=client")
    (where / "ext").write_text(f"subjectAltName=email:{address}\n")
    run(
        *["x509", "-req", "-in", "c.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"],
        *["-days", "2", "-extfile", "ext", "-out", "c.pem"],
    )
    both = where / "client.pem"
    both.write_bytes((where / "c.key").read_bytes() + (where / "c.pem").read_bytes())
    return where / "ca.pem", both

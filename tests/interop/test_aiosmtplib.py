"""aiosmtplib: many connections at once."""

from __future__ import annotations

import asyncio
from email.message import EmailMessage

import pytest
from interop_peers import listener, route


@pytest.mark.parametrize("tls", [False, True])
def test_concurrent_connections(gateway_factory, sink, certificate, tls):
    aiosmtplib = pytest.importorskip("aiosmtplib")
    gateway = gateway_factory(
        [route(f"smtp://127.0.0.1:{sink.port}")], [listener(tls="starttls" if tls else "off")]
    )

    async def send(number: int) -> None:
        client = aiosmtplib.SMTP(
            hostname="localhost",
            port=gateway.port,
            start_tls=tls,
            cert_bundle=str(certificate[0]) if tls else None,
            timeout=60,
        )
        async with client:
            for part in range(5):
                mail = EmailMessage()
                mail["From"], mail["To"] = "a@example.test", "b@example.test"
                mail["Message-ID"] = f"<{number}.{part}@example.test>"
                mail.set_content("text\n")
                await client.send_message(mail)

    async def send_all() -> None:
        await asyncio.gather(*(send(number) for number in range(20)))

    asyncio.run(send_all())
    contents = [receipt.content for receipt in sink.wait(100)]
    for number in range(20):
        for part in range(5):
            field = f"Message-ID: <{number}.{part}@example.test>".encode()
            assert sum(field in content for content in contents) == 1

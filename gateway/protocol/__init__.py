"""State machines: octets to events and back.  No asyncio, socket, ssl, os or time in here."""

"""A high-throughput mail gateway.  Read app.py first: it builds every object and wires them."""

__version__ = "0.1.0"

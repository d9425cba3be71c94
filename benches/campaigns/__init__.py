"""Campaigns against a whole gateway: too much load (overload.py), a long time (soak.py)."""

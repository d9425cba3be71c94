"""Owns mail between our 250 and the final disposition of its last recipient."""

"""What the end-to-end tests share."""

from e2e.rig import lab

__all__ = ["lab"]

"""What the end-to-end tests share."""

from collections.abc import Iterator

import pytest
from e2e.rig import lab
from e2e.web_hook import WebHook

__all__ = ["lab"]


@pytest.fixture
def hook() -> Iterator[WebHook]:
    made = WebHook()
    yield made
    made.close()

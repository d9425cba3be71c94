"""The fuzz build, once for all tests that need it."""

from __future__ import annotations

import os

import pytest

from tests.fuzz import build


@pytest.fixture(scope="session")
def fuzz_build() -> None:
    """Skips with what is missing; in CI that is an error."""
    try:
        build.make()
    except build.Unavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))

"""Every test of the data kernels runs on the slow model and on each instruction set that this machine has."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gateway._native import dot as native_dot

sys.path.insert(0, str(Path(__file__).parent))

import model_data

# The sanitizers see nothing in a model, and take their time.
MODELS = [] if "asan" in os.environ.get("LD_PRELOAD", "") else ["model"]


@pytest.fixture(params=[*MODELS, *native_dot.kernels()])
def dot(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """gateway._native.dot with one of its kernels, or the model of it."""
    if request.param == "model":
        yield model_data
        return
    native_dot.use_kernel(request.param)
    yield native_dot
    native_dot.use_kernel(native_dot.kernels()[-1])


@pytest.fixture(params=native_dot.kernels())
def native(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """gateway._native.dot with one of its kernels, for comparisons with the model."""
    native_dot.use_kernel(request.param)
    yield native_dot
    native_dot.use_kernel(native_dot.kernels()[-1])


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Afterwards there are as many chunks as before."""
    before = native_dot.live_counts()
    yield
    if native_dot.live_counts() != before:
        gc.collect()  # a failed test's frames, or what hypothesis holds
    assert native_dot.live_counts() == before

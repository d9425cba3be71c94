"""The corpus of real mail, where the benches have fetched it: benches/corpus.py says where it is kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

CORPUS = Path(__file__).parent.parent / "benches" / "corpus.py"


def real_mail(step: int = 1) -> list[bytes]:
    """Every step-th message; skips the test when the corpus was never fetched."""
    spec = importlib.util.spec_from_file_location("corpus", CORPUS)
    assert spec is not None and spec.loader is not None
    corpus = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corpus)
    paths = corpus.cached()
    if not paths:
        pytest.skip("no corpus of real mail: python benches/corpus.py fetches it")
    return [path.read_bytes() for path in paths[::step]]

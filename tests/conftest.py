"""What all tests share: a certificate made once, and the harness on the path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) of mx.example.test and localhost, made by openssl."""
    directory = tmp_path_factory.mktemp("tls")
    pem, key = directory / "tls.pem", directory / "tls.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", str(key), "-out", str(pem), "-days", "30"),
            *("-subj", "/CN=mx.example.test"),
            *("-addext", "subjectAltName=DNS:mx.example.test,DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    key.chmod(0o600)
    return pem, key

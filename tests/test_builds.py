"""The distribution as its users get it, and the builds with checks: sdist, wheel, editable, debug, sanitizer.

Each works on a copy of the tracked files, so nothing that lies about in the checkout can help.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks."""
    target = tmp_path_factory.mktemp("sources")
    names = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sdist → wheel, as `pip install` of a release does it (with the debug switch: it compiles faster)."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "-o", str(out), cwd=sources, GATEWAY_BUILD="debug")
    assert list(out.glob("*.tar.gz"))
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_carries_the_package_and_no_sources(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    kernels = [Path(n).name for n in names if n.startswith("gateway/_native/") and n.endswith(".so")]
    extensions = {name.partition(".")[0] for name in kernels}
    assert extensions == {path.stem for path in (ROOT / "_native").glob("*.pyx")}
    assert "gateway/_native/__init__.pyi" in names
    assert "gateway/py.typed" in names
    # Compiled Python carries its source: what runs can be read.
    for name in names:
        if name.endswith(".so") and not name.startswith(("gateway/_native/", "smtp_blaster/wire.")):
            assert name.partition(".")[0] + ".py" in names
    assert {"smtp_blaster/cli.py", "smtp_blaster/report.html", "smtp_blaster/report.css"} <= {*names}
    assert not [n for n in names if n.endswith((".pyx", ".pxd", ".c", ".h"))]
    tops = {n.partition("/")[0] for n in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"gateway", "smtp_blaster"}


def test_the_wheel_works_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), str(wheel), cwd=Path("/"))
    code = "import gateway._native as n, gateway.app; print(n.__file__)"
    shown = run(sys.executable, "-c", code, cwd=Path("/"), PYTHONPATH=str(tmp_path))
    assert shown.strip().startswith(str(tmp_path))


def test_editable_install_rebuild_and_debug_counters(sources: Path, tmp_path: Path) -> None:
    """One venv for the three: each would build everything once more."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(venv), cwd=tmp_path)
    python = str(venv / "bin" / "python")
    # The dependencies come from the environment of the tests; what is installed here is found before them.
    site = next(p for p in sys.path if p.endswith("site-packages"))
    (own,) = venv.glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(f"{site}\n")
    env = {"GATEWAY_BUILD": "debug"}
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", ".", cwd=sources, **env)
    shown = run(python, "-c", "import gateway._native as n; print(n.__file__)", cwd=Path("/"))
    assert shown.strip().startswith(str(sources))

    # A header that changed rebuilds the extensions that use it, and only those.
    run(python, "setup.py", "build_ext", "--inplace", cwd=sources)
    before = {path.name: path.stat().st_mtime_ns for path in (sources / "gateway/_native").glob("*.so")}
    users = {
        path.stem
        for path in (sources / "_native").glob("*.pyx")
        if "crc32c" in path.read_text() or "logwriter.h" in path.read_text()
    }
    assert users
    os.utime(sources / "_native" / "crc32c.h")
    run(python, "setup.py", "build_ext", "--inplace", cwd=sources)
    after = {path.name: path.stat().st_mtime_ns for path in (sources / "gateway/_native").glob("*.so")}
    rebuilt = {name.partition(".")[0] for name in after if after[name] != before[name]}
    assert users <= rebuilt


def test_kernels_under_the_sanitizers(sources: Path, tmp_path: Path) -> None:
    """ASan and UBSan over the native tests and the dialogues."""
    copy = tmp_path / "sanitized"
    shutil.copytree(sources, copy)
    for stale in (copy / "gateway/_native").glob("*.so"):
        stale.unlink()
    run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=copy, GATEWAY_BUILD="sanitizer")
    preload = " ".join(run("gcc", f"-print-file-name={lib}.so", cwd=copy).strip() for lib in ("libasan", "libubsan"))
    run(
        sys.executable,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/native", "tests/dialogs/test_machine.py"),
        cwd=copy,
        LD_PRELOAD=preload,
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="print_stacktrace=1",
        PYTHONMALLOC="malloc",
    )

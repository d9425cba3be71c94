"""The distribution as its users get it, and the builds with checks: sdist, wheel, editable, debug, sanitizer.

All work on copies of the tracked files, so nothing that lies about in the checkout can help; and on as few builds as
show it: one of the sdist with the debug switch, and the sanitizers' that fuzzing needs as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.fuzz import build as fuzz_build

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
def unpacked(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in the sdist."""
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "-o", str(out), cwd=sources, GATEWAY_BUILD="debug")
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(out, filter="data")
    return out / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sdist → wheel, as `pip install` of a release does it (with the debug switch: it compiles faster)."""
    out = tmp_path_factory.mktemp("dist")
    run(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), "."),
        cwd=unpacked,
        GATEWAY_BUILD="debug",
    )
    (found,) = out.glob("*.whl")
    return found


def test_the_wheel_carries_the_package_and_no_sources(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    kernels = [Path(n).name for n in names if n.startswith("gateway/_native/") and n.endswith(".so")]
    extensions = {name.partition(".")[0] for name in kernels}
    assert extensions == {path.stem for path in (ROOT / "_native").glob("*.pyx")}
    assert "gateway/_native/__init__.pyi" in names
    assert "gateway/py.typed" in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gateway").rglob("*.py")}
    assert not modules - {*names}
    # Compiled Python carries its source: what runs can be read.
    kernels_of_tools = [f"smtp_blaster/{path.stem}." for path in (ROOT / "tools/smtp_blaster").glob("*.pyx")]
    for name in names:
        if name.endswith(".so") and not name.startswith(("gateway/_native/", *kernels_of_tools)):
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


@pytest.mark.usefixtures("wheel")  # its build is where the first one here starts from
def test_editable_install_and_rebuild(unpacked: Path, tmp_path: Path) -> None:
    """As the Makefile does it: the Python by pip, the extensions in place."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(venv), cwd=tmp_path)
    python = str(venv / "bin" / "python")
    # The dependencies come from the environment of the tests; what is installed here is found before them.
    site = next(p for p in sys.path if p.endswith("site-packages"))
    (own,) = venv.glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(f"{site}\n")
    pip = (python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", ".")
    run(*pip, cwd=unpacked, GATEWAY_BUILD="none")
    build = (python, "setup.py", "build_ext", "--inplace")
    run(*build, cwd=unpacked, GATEWAY_BUILD="release")
    shown = run(python, "-c", "import gateway._native as n; print(n.__file__)", cwd=Path("/"))
    assert shown.strip().startswith(str(unpacked))

    # A header that changed rebuilds the extensions that use it.
    before = {path.name: path.stat().st_mtime_ns for path in (unpacked / "gateway/_native").glob("*.so")}
    users = {
        path.stem
        for path in (unpacked / "_native").glob("*.pyx")
        if "crc32c" in path.read_text() or "logwriter.h" in path.read_text()
    }
    assert users
    for path in (unpacked / "_native").glob("*.pyx"):
        if path.stem not in users:
            path.unlink()  # all have all headers for dependencies, and need not be built to see it
    os.utime(unpacked / "_native" / "crc32c.h")
    run(*build, cwd=unpacked, GATEWAY_BUILD="release")
    after = {path.name: path.stat().st_mtime_ns for path in (unpacked / "gateway/_native").glob("*.so")}
    rebuilt = {name.partition(".")[0] for name in after if after[name] != before[name]}
    assert users <= rebuilt


def test_kernels_under_the_sanitizers(sources: Path, tmp_path: Path) -> None:
    """ASan and UBSan over the native tests and the dialogues: the fuzz build, or where that cannot be, one by gcc."""
    copy = tmp_path / "sanitized"
    try:
        fuzz_build.make()
    except fuzz_build.Unavailable:
        shutil.copytree(sources, copy)
        run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=copy, GATEWAY_BUILD="sanitizer")
        libraries = (run("gcc", f"-print-file-name={lib}.so", cwd=copy).strip() for lib in ("libasan", "libubsan"))
        env = {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        }
        package = copy
    else:
        # The tests and their mail, without the gateway that lies beside them.
        for name in ("tests", "benches"):
            shutil.copytree(sources / name, copy / name)
        shutil.copy(sources / "pyproject.toml", copy)
        package = fuzz_build.LIB
        env = {**fuzz_build.environment(), "PYTHONPATH": str(package)}
    shown = run(sys.executable, "-c", "import gateway._native.dot as n; print(n.__file__)", cwd=copy, **env)
    assert shown.strip().startswith(str(package)), shown
    tests = ("tests/native", "tests/dialogs/test_machine.py")
    # What a sanitizer says before it aborts goes to the descriptor, which pytest must not hold.
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--capture=sys", *tests, cwd=copy, **env)

"""Builds an sdist out of the checkout, a wheel out of the sdist; uses the wheel in an environment of its own.

Goes to no network: setuptools and Cython are in the `test` extra, and the new environment borrows the
installed dependencies of this one.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import hilum

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(path.stem for path in (ROOT / "src").glob("*.pyx"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, with no variable that leads back to the checkout."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HILUM_"))
    }
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def _build(kind: str, source: Path, out: Path) -> Path:
    """What the build backend makes of a folder, without build isolation."""
    code = f"import setuptools.build_meta as backend; print('built', backend.build_{kind}({str(out)!r}))"
    words = _run(sys.executable, "-c", code, cwd=source)
    return out / words.rsplit("built ", 1)[1].strip()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < 77 or importlib.util.find_spec("Cython") is None:
        pytest.skip("a build without the network needs setuptools 77 and Cython: install the test extra")
    if not (ROOT / "setup.py").is_file():
        pytest.skip("this is no checkout and no sdist")
    tree = tmp_path_factory.mktemp("checkout") / "hilum"
    top = {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "Makefile"}
    top |= {".ci", "src", "docs", "tests", "benchmarks", "tools"}
    tree.mkdir()
    leave = shutil.ignore_patterns("__pycache__", "*.so", "*.c", "*.egg-info")
    for path in (path for path in ROOT.iterdir() if path.name in top):
        if path.is_dir():
            shutil.copytree(path, tree / path.name, ignore=leave if path.name == "src" else None)
        else:
            shutil.copy(path, tree)
    return _build("sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return _build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of a new environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("venv")
    _run(sys.executable, "-m", "venv", folder, cwd=folder)
    _run(folder / "bin" / "python", "-m", "pip", "install", "--no-index", "--no-deps", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # Lines of a .pth come behind the environment's own packages: hilum is the wheel's, the rest is ours.
    borrowed = [path for path in sys.path if path.endswith("-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    return folder / "bin"


def test_the_sdist_has_all_that_a_build_and_a_test_run_need(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    needed = {"setup.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "Makefile", ".ci/run"}
    needed |= {f"src/{module}.pyx" for module in MODULES} | {"src/_sequence_tags.pxi"}
    needed |= {f"src/hilum/{module}.pyi" for module in MODULES} | {"src/hilum/py.typed"}
    needed |= {"docs/format.md", "tests/test_format.py", "tests/powerloss/recorder.c"}
    assert needed - names == set()


def test_the_sdist_has_nothing_that_is_made(sdist):
    with tarfile.open(sdist) as archive:
        names = archive.getnames()

    made = re.compile(r"\.so$|\.py[co]$|/src/[^/]*\.c$|__pycache__|/\.venv|demo-store")
    assert [name for name in names if made.search(name)] == []


def test_the_wheel_has_the_compiled_modules_and_their_types(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    assert {f"hilum/{module}.pyi" for module in MODULES} | {"hilum/py.typed"} <= set(names)
    for module in MODULES:
        assert len([name for name in names if re.fullmatch(rf"hilum/{module}\.[\w.-]+\.so", name)]) == 1
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"hilum", f"hilum-{hilum.__version__}.dist-info"}


def test_the_wheel_works_where_there_is_no_checkout(installed, tmp_path):
    where = _run(installed / "python", "-c", "import hilum._fastparse as f; print(f.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)

    assert "import" in _run(installed / "hilum", "--help", cwd=tmp_path)
    assert hilum.__version__ in _run(installed / "hilum", "--version", cwd=tmp_path)
    assert "import" in _run(installed / "python", "-m", "hilum", "--help", cwd=tmp_path)


def test_the_wheel_stores_a_file_and_gives_it_back(installed, tmp_path):
    code = """
import hilum, importlib.util, pathlib
folder = pathlib.Path(importlib.util.find_spec("pydicom").origin).parent / "data" / "test_files"
data = (folder / "CT_small.dcm").read_bytes()
with hilum.open("store", create=True) as store:
    uid = store.ingest(data).uid
    assert store.read(uid) == data
    print(store.frame(uid, 0).shape)
"""
    assert _run(installed / "python", "-c", code, cwd=tmp_path).strip() == "(128, 128)"


def test_version_and_changelog_agree():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)

    assert newest is not None
    assert newest[1] == PROJECT["version"] == hilum.__version__

"""What starting loads: `import hilum` and `hilum --help` must not wait for libraries that they don't use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from makers import make_object

import hilum

HEAVY = {"numpy", "pydicom", "lmdb", "rich", "PIL", "imagecodecs", "openjpeg", "rle"}


def loaded(program: str, *words: object) -> set[str]:
    """Names of the outside modules that a program has loaded at its end."""
    tail = "\nimport sys\nprint('\\n' + ' '.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program + tail, *map(str, words)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


COMMAND = """
import sys
from hilum.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert ended.code == 0
"""


def test_import_hilum_loads_nothing_but_python_itself():
    found = loaded("import hilum")

    outside = {name.split(".")[0] for name in found} - set(sys.stdlib_module_names) - {"hilum", "__main__"}
    assert not outside & (HEAVY | {"click", "orjson", "blake3", "isal"})
    assert {name for name in found if name.startswith("hilum")} == {"hilum", "hilum.errors"}


def test_the_names_of_the_package_load_when_they_are_used():
    found = loaded("import hilum; hilum.open; hilum.Store")

    assert "lmdb" in found
    assert not found & (HEAVY - {"lmdb"})


def test_a_name_that_the_package_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = hilum.nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        *[[name, "--help"] for name in ("import", "find", "show", "frame", "verify")],
    ],
    ids=" ".join,
)
def test_help_loads_no_store_no_codec_and_no_array(words):
    found = loaded(COMMAND, *words)

    assert not found & (HEAVY | {"orjson", "blake3", "isal"})
    assert not {name for name in found if name.startswith(("hilum.engine", "hilum.pixels", "hilum.dicom"))}


def test_help_of_the_whole_loads_no_command():
    found = loaded(COMMAND, "--help")

    assert {name for name in found if name.startswith("hilum.cli")} == {"hilum.cli", "hilum.cli.common"}


@pytest.mark.parametrize(
    ("words", "without"),
    [
        (["import", "{file}"], {"numpy", "pydicom", "rich", "PIL", "imagecodecs"}),
        (["find", "studies", "--json"], {"numpy", "pydicom", "rich", "PIL", "imagecodecs"}),
        (["stats"], {"numpy", "pydicom", "rich", "PIL", "imagecodecs"}),
        (["verify"], {"numpy", "pydicom", "rich", "PIL", "imagecodecs"}),
        (["rebuild"], {"numpy", "pydicom", "rich", "PIL", "imagecodecs"}),
        (["delete", "studies", "PatientID=P9"], {"numpy", "pydicom", "rich", "PIL", "imagecodecs"}),
        (["export", "{out}"], {"numpy", "pydicom", "rich", "PIL", "imagecodecs"}),
        (["show", "2.25.1"], {"rich", "hilum.pixels"}),  # pydicom itself loads what it finds
        (
            ["frame", "2.25.1", "1", "--raw", "-o", "{out}"],
            {"numpy", "pydicom", "rich", "PIL", "imagecodecs"},
        ),
        (["frame", "2.25.1", "1", "-o", "{out}"], {"pydicom", "rich", "openjpeg"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_loads_only_what_it_uses(tmp_path, words, without):
    file = make_object("2.25.1", "2.25.2", "2.25.3", pixels=bytes(64), rows=8, columns=8)
    (tmp_path / "file.dcm").write_bytes(file)
    with hilum.open(tmp_path / "store", create=True) as store:
        store.ingest(file)

    words = [word.format(file=tmp_path / "file.dcm", out=tmp_path / "out") for word in words]
    found = loaded(COMMAND, *words, "--store", tmp_path / "store")

    assert not found & without


def test_a_missing_compiled_module_is_an_import_error_and_no_slow_path(tmp_path):
    program = "import sys; sys.modules['hilum._fastparse'] = None\nimport hilum\nhilum.open"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=os.environ.copy()
    )

    assert done.returncode != 0
    assert "_fastparse" in done.stderr
    assert "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr

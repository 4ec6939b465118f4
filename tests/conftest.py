"""What tests share: where the sample files are. Makes nothing, and never goes to the network.

The samples of ../shared/data are not part of the project: a test that needs them asks for `shared_data` and
is skipped without them. Those of pydicom are installed with it; pydicom's own get_testdata_files would
download what is missing, so nothing here calls it.
"""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
PYDICOM_DATA = Path(pydicom.__file__).resolve().parent / "data" / "test_files"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of sample files beside the project; its MANIFEST.tsv says what each one is."""
    if not (SHARED_DATA / "MANIFEST.tsv").is_file():
        pytest.skip("the sample files are not beside the project, in ../shared/data")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shared_files(shared_data: Path) -> dict[str, Path]:
    """Path of each sample file by its name below ../shared/data. The manifest cuts names of over 120
    characters, so it is the folder that is read."""
    return _files_below(shared_data, without="MANIFEST.tsv")


@pytest.fixture(scope="session")
def pydicom_files() -> dict[str, Path]:
    """Path of each test file that is installed with pydicom, DICOM or not, by its name below test_files."""
    return _files_below(PYDICOM_DATA)


def _files_below(folder: Path, without: str = "") -> dict[str, Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != without)
    return {path.relative_to(folder).as_posix(): path for path in paths}


@pytest.fixture(scope="session", params=["shared", "pydicom"])
def sample_files(request: pytest.FixtureRequest) -> dict[str, Path]:
    """Each of the two above in turn. Names of pydicom's begin with "pydicom:"."""
    if request.param == "shared":
        files: dict[str, Path] = request.getfixturevalue("shared_files")
        return files
    found: dict[str, Path] = request.getfixturevalue("pydicom_files")
    return {f"pydicom:{name}": path for name, path in found.items()}

"""Requests that schemathesis makes out of openapi.yaml, against a server with real objects: none may be the
server's fault, and what is answered must be what is described.

HILUM_SCHEMATHESIS is how many requests there are in all, 1,000 where it is not set. The same number makes the
same requests. In half of them what schemathesis can't guess takes the place of what it made up: names of what
is stored, and an Accept that means something.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from makers import element, make_object
from peers import phantoms
from peers.serving import server

import hilum
from hilum.web import swagger

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

try:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings, strategies
except ImportError:
    if os.environ.get("CI"):
        raise
    pytest.skip("schemathesis is not here: install the peers extra", allow_module_level=True)

REQUESTS = int(os.environ.get("HILUM_SCHEMATHESIS", "1000"))
STUDY, SERIES = "2.25.1", "2.25.1.1"
PICTURE, LOOP, TEXT = "2.25.1.1.1", "2.25.1.1.2", "2.25.1.1.3"


# What schemathesis can't guess: names of what is stored, and media types that mean something.
STORED = {
    "study": [STUDY],
    "series": [SERIES],
    "instance": [PICTURE, LOOP, TEXT],
    "frames": ["1", "2,1", "7"],
    "path": ["7FE00010", "0040A160"],
    "studyUID": [STUDY],
    "seriesUID": [SERIES],
    "objectUID": [PICTURE, LOOP, TEXT],
    "id": [STUDY, "P1"],
}
ACCEPTS = [
    "*/*", "image/*", "image/png;q=0.5, image/gif", "image/jpeg", "application/dicom", "application/zip",
    "application/dicom+json", "application/dicom+xml", 'multipart/related; type="application/dicom+xml"',
    "multipart/related; type=application/octet-stream; transfer-syntax=*", "application/pdf", "text/plain",
    'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.80', "image/jls;q=",
]  # fmt: skip


def _order(operation: Any) -> tuple[bool, int]:
    deletes = operation.method == "delete"
    return deletes, -len(operation.path) if deletes else 0


DESCRIPTION = Path(swagger.__file__).parent / "openapi.yaml"
SCHEMA = schemathesis.openapi.from_dict(yaml.safe_load(DESCRIPTION.read_text(encoding="utf-8")))
FOUND = [operation.ok() for operation in SCHEMA.get_all_operations()]
# What deletes comes last, the smallest first: there is something to ask for before it.
OPERATIONS = {operation.label: operation for operation in sorted(FOUND, key=_order)}
CHECKS = [
    getattr(schemathesis.checks, name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
]
EXAMPLES = max(1, REQUESTS // len(OPERATIONS))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("schemathesis")
    (loop,) = phantoms.ultrasound()
    with hilum.open(folder / "store", create=True) as store:
        store.ingest(make_object(PICTURE, STUDY, SERIES, pixels=bytes(64 * 64), rows=64, columns=64))
        store.ingest(renamed(loop.data, loop, LOOP))
        text = element(0x0040A160, "UT", "a report")
        store.ingest(make_object(TEXT, STUDY, SERIES, modality="SR", extra=[(0x0040A160, text)]))
    with server(folder / "store", "--allow-delete") as found:
        yield found


def renamed(data: bytes, phantom: phantoms.Phantom, instance: str) -> bytes:
    """An object under other UIDs, which are as long: null bytes pad them."""
    for old, new in ((phantom.instance, instance), (phantom.series, SERIES), (phantom.study, STUDY)):
        data = data.replace(old.encode(), new.encode().ljust(len(old), b"\0"))
    return data


@pytest.mark.parametrize("label", OPERATIONS)
def test_no_request_is_the_servers_fault_and_each_answer_is_as_described(label, url):
    statuses: set[int] = set()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=OPERATIONS[label].as_strategy(), meant=strategies.booleans(), data=strategies.data())
    def ask(case: Any, meant: bool, data: Any) -> None:
        if meant:
            for values in (case.path_parameters, case.query):
                for name in values.keys() & STORED.keys():
                    values[name] = data.draw(strategies.sampled_from(STORED[name]))
            case.query.pop("accept", None)
            case.headers["Accept"] = data.draw(strategies.sampled_from(ACCEPTS))
        answer = case.call(base_url=url)
        statuses.add(answer.status_code)
        assert answer.status_code < 500, f"{answer.status_code} {answer.text[:500]}"
        case.validate_response(answer, checks=CHECKS)

    ask()
    print(label, sorted(statuses))

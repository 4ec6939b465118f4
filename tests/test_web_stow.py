"""Storing over HTTP, PS3.18 10.5: what is answered is durable, what is not stored is told, memory bounded."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import orjson
import pydicom
import pytest
from makers import (
    CT_IMAGE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    element,
    make_object,
    noise,
)
from starlette.testclient import TestClient
from webclient import client_of, serving

import hilum
from hilum.api import Store
from hilum.dicom import uids
from hilum.engine import packs, prepare
from hilum.engine.verify import verify
from hilum.errors import BadDicom, NotDicom, NotFound
from hilum.settings import Settings
from hilum.web import stow, stow_storing
from hilum.web.app import make_app

STUDIES = "/dicom-web/studies"
DICOM = "application/dicom"
JSON = "application/dicom+json"
XML = "application/dicom+xml"

FAILED, REFERENCED, OTHER = "00081198", "00081199", "0008119A"
Answer = Any


def related(
    parts: Iterable[bytes], kind: str = DICOM, boundary: str = "=_frontier"
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with a part for each of these."""
    body = b"".join(
        f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode() + part + b"\r\n" for part in parts
    )
    header = f'multipart/related; type="{kind}"; boundary="{boundary}"'
    return body + f"--{boundary}--\r\n".encode(), {"content-type": header}


def post(client: TestClient, *parts: bytes, study: str = "", **headers: str) -> Answer:
    body, own = related(parts)
    return client.post(f"{STUDIES}/{study}" if study else STUDIES, content=body, headers={**own, **headers})


def items(answer: Answer, tag: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer.json().get(tag, {}).get("Value", [])
    return found


def uids_of(answer: Answer, tag: str) -> list[str]:
    return [item["00081155"]["Value"][0] for item in items(answer, tag)]


def reasons(answer: Answer, tag: str = FAILED) -> list[int]:
    return [item["00081197"]["Value"][0] for item in items(answer, tag)]


def warnings_of(answer: Answer) -> list[int]:
    return [item["00081196"]["Value"][0] for item in items(answer, REFERENCED) if "00081196" in item]


def problems_of(store: Store) -> list[Any]:
    found: list[Any] = []
    verify(store, on_problem=found.append)
    return found


ONE = make_object("1.2.1", "1.1", "1.3", pixels=noise(3000, 1))
TWO = make_object("1.2.2", "1.1", "1.3", pixels=noise(3000, 2))
OTHER_CONTENT = make_object("1.2.1", "1.1", "1.3", pixels=noise(3000, 3))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[TestClient, Store]]:
    with serving(tmp_path) as both:
        yield both


# --- Answers: STANDARD 23 and 24 -----------------------------------------------


def test_all_stored_is_200_with_the_url_of_each_instance_and_of_the_study(served):
    client, store = served

    answer = post(client, ONE, TWO)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == JSON
    assert set(answer.json()) == {"00081190", REFERENCED}  # no empty sequences
    assert answer.json()["00081190"] == {"vr": "UR", "Value": [f"http://localhost{STUDIES}/1.1"]}
    assert items(answer, REFERENCED) == [
        {
            "00081150": {"vr": "UI", "Value": [CT_IMAGE]},
            "00081155": {"vr": "UI", "Value": [uid]},
            "00081190": {"vr": "UR", "Value": [f"http://localhost{STUDIES}/1.1/series/1.3/instances/{uid}"]},
        }
        for uid in ("1.2.1", "1.2.2")
    ]
    assert [store.read("1.2.1"), store.read("1.2.2")] == [ONE, TWO]


def test_instances_of_several_studies_have_no_url_of_a_study(served):
    client, _ = served
    answer = post(client, ONE, make_object("1.2.9", "1.5", "1.3"))
    assert answer.status_code == 200
    assert answer.json()["00081190"] == {"vr": "UR"}


def test_some_stored_is_202_and_each_failure_has_its_item(served):
    client, store = served

    answer = post(client, ONE, b"no DICOM at all", TWO[:200], make_object("1.2.9", "", "1.3"))

    assert answer.status_code == 202
    assert uids_of(answer, REFERENCED) == ["1.2.1"]
    assert reasons(answer, OTHER) == [0xC000, 0xC000]  # nothing tells what these are
    assert uids_of(answer, FAILED) == ["1.2.9"]
    assert reasons(answer) == [0xA900]
    assert items(answer, FAILED)[0]["00081150"]["Value"] == [CT_IMAGE]
    assert "no Study Instance UID" in items(answer, FAILED)[0]["00000902"]["Value"][0]
    assert store.read("1.2.1") == ONE


def test_none_stored_is_409(served):
    client, store = served
    answer = post(client, b"no DICOM at all")
    assert answer.status_code == 409
    assert set(answer.json()) == {"00081190", OTHER}
    assert answer.json()["00081190"] == {"vr": "UR"}
    assert store.stats()["instances"] == 0


def test_a_broken_part_that_tells_its_uids_fails_under_them(served):
    client, _ = served
    broken = ONE + element(0xFFFCFFFC, "OB", b"12345678")[:-4]
    answer = post(client, broken)
    assert (answer.status_code, uids_of(answer, FAILED), reasons(answer)) == (409, ["1.2.1"], [0xC000])


def test_an_instance_of_another_study_fails_and_those_of_the_study_are_stored(served):
    client, store = served

    answer = post(client, ONE, make_object("1.2.9", "1.5", "1.3"), study="1.1")

    assert answer.status_code == 202
    assert (uids_of(answer, REFERENCED), uids_of(answer, FAILED)) == (["1.2.1"], ["1.2.9"])
    assert reasons(answer) == [0xA901]
    with pytest.raises(NotFound):
        store.locate("1.2.9")
    assert post(client, ONE, study="1.7").status_code == 409


def test_the_same_instance_again_is_success_and_nothing_is_written(served):
    client, store = served
    post(client, ONE)
    before = store.stats()["bulk_bytes"], store.stats()["head_bytes"]

    answer = post(client, ONE, ONE)

    assert (answer.status_code, uids_of(answer, REFERENCED)) == (200, ["1.2.1", "1.2.1"])
    assert (store.stats()["bulk_bytes"], store.stats()["head_bytes"]) == before


def test_other_content_under_a_uid_that_is_stored_fails_and_the_first_is_kept(served):
    client, store = served
    post(client, ONE)

    answer = post(client, OTHER_CONTENT, TWO)

    assert answer.status_code == 202
    assert (uids_of(answer, FAILED), reasons(answer)) == (["1.2.1"], [0x0111])
    assert store.read("1.2.1") == ONE
    assert post(client, OTHER_CONTENT).status_code == 409


def test_of_two_contents_under_one_uid_in_one_request_the_first_is_kept(served):
    client, store = served
    answer = post(client, ONE, OTHER_CONTENT)
    assert (answer.status_code, reasons(answer)) == (202, [0x0111])
    assert store.read("1.2.1") == ONE


def test_with_replace_other_content_is_stored_with_a_warning(tmp_path):
    with serving(tmp_path, [ONE], storing={"conflicts": "replace"}) as (client, store):
        answer = post(client, OTHER_CONTENT)
        assert (answer.status_code, warnings_of(answer)) == (202, [0xB001])
        assert store.read("1.2.1") == OTHER_CONTENT
        assert store.stats()["revisions"] == 1


def test_cut_pixels_are_stored_as_they_came_with_a_warning(served):
    client, store = served
    answer = post(client, ONE[:-1000])
    assert (answer.status_code, warnings_of(answer)) == (202, [0xB007])
    assert store.read("1.2.1") == ONE[:-1000]


def test_what_we_say_of_a_failure_is_a_value_that_lo_can_have(served):
    client, _ = served
    answer = post(client, make_object("1.2.9", "1.1", "a\\b" * 30))
    (item,) = items(answer, FAILED)
    (words,) = item["00000902"]["Value"]
    assert len(words) <= 64
    assert "\\" not in words


@pytest.mark.parametrize("accept", [None, "*/*", JSON, "application/json", f"{XML};q=0.5, {JSON}"])
def test_json_is_what_is_answered_unless_xml_is_liked_better(served, accept):
    client, _ = served
    answer = post(client, ONE, **({"accept": accept} if accept else {}))
    assert answer.headers["content-type"] == (accept if accept == "application/json" else JSON)
    assert uids_of(answer, REFERENCED) == ["1.2.1"]


def test_xml_says_the_same_as_json(served):
    from hilum.dicom.xml import from_xml

    client, _ = served
    as_json = post(client, ONE, b"junk")
    as_xml = post(client, ONE, b"junk", accept=XML)
    assert as_xml.headers["content-type"] == XML
    assert from_xml(as_xml.content) == as_json.json()


def test_what_can_not_be_answered_is_not_stored(served):
    client, store = served
    assert post(client, ONE, accept="image/png").status_code == 406
    assert store.stats()["instances"] == 0


# --- What is taken: STANDARD 25 --------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        'multipart/related; type="application/dicom"; boundary="=_frontier"',
        "multipart/related; type=application/dicom; boundary==_frontier",
        "Multipart/Related;boundary==_frontier;type=application/dicom",
        'multipart/related; type="application/dicom"; start="<1>"; boundary="=_frontier"; charset=utf-8',
        'multipart/related; type="application/dicom; transfer-syntax=*"; boundary="=\\_frontier"',
        'multipart/related; boundary="=_frontier"',
        'multipart/related; boundary="=_frontier"; type="APPLICATION/DICOM";',
    ],
)
def test_all_ways_of_writing_the_content_type_are_understood(served, header):
    client, store = served
    body, _ = related([ONE])
    answer = client.post(STUDIES, content=body, headers={"content-type": header})
    assert answer.status_code == 200, answer.text
    assert store.read("1.2.1") == ONE


def test_a_boundary_inside_of_an_instance_is_no_boundary_unless_it_is_the_whole(served):
    client, store = served
    pixels = b"\r\n--\r\n--=_fronti\r\n--=_frontierX\r\n--=_frontier-\n--=_frontier\r\n" + noise(2000, 5)
    file = make_object("1.2.5", "1.1", "1.3", pixels=pixels + b"\r" * (len(pixels) % 2))
    assert post(client, file).status_code == 200
    assert store.read("1.2.5") == file


def test_a_single_part_is_stored(served):
    client, store = served
    answer = client.post(STUDIES, content=ONE, headers={"content-type": DICOM})
    assert (answer.status_code, uids_of(answer, REFERENCED)) == (200, ["1.2.1"])
    assert store.read("1.2.1") == ONE


def test_a_sender_with_lf_alone_is_understood(served):
    client, store = served
    body = b"--b\nContent-Type: application/dicom\n\n" + ONE + b"\n--b--\n"
    answer = client.post(STUDIES, content=body, headers={"content-type": "multipart/related; boundary=b"})
    assert answer.status_code == 200
    assert store.read("1.2.1") == ONE


def test_headers_of_a_part_that_say_nothing_or_too_much_do_no_harm(served):
    client, store = served
    body = (
        b"preamble\r\n--b  \r\n\r\n" + ONE + b"\r\n--b\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Length: 7\r\nMIME-Version: 1.0\r\nX: y\r\n\r\n" + TWO + b"\r\n--b--\r\nepilogue"
    )
    header = {"content-type": 'multipart/related; type="application/dicom"; boundary=b'}
    assert client.post(STUDIES, content=body, headers=header).status_code == 200
    assert [store.read("1.2.1"), store.read("1.2.2")] == [ONE, TWO]


@pytest.mark.parametrize(
    ("header", "body", "status", "words"),
    [
        ("multipart/related; type=application/dicom", b"x", 400, "names no boundary"),
        ("multipart/related; boundary=b", b"", 400, "no line with the boundary"),
        ("multipart/related; boundary=b", b"--c\r\n\r\nx\r\n--c--", 400, "no line with the boundary"),
        ("multipart/related; boundary=b", b"--b--", 400, "no part to store"),
        ("multipart/related; boundary=b", b"--b\r\nnonsense\r\n\r\nx\r\n--b--", 400, "no header field"),
        ("multipart/related; boundary=b", b"--b\r\n\r\n" + ONE, 400, "before its last boundary"),
        (
            "multipart/related; boundary=b",
            b"--b\r\nContent-Transfer-Encoding: base64\r\n\r\nAA==\r\n--b--",
            400,
            "Content-Transfer-Encoding",
        ),
        ("multipart/form-data; boundary=b", b"--b--", 415, "not stored here"),
        ("multipart/related; type=image/jpeg; boundary=b", b"--b--", 415, "image/jpeg"),
        ("application/x-www-form-urlencoded", ONE, 415, "application/dicom"),
        ("", ONE, 415, "no type"),
    ],
)
def test_what_is_no_body_of_instances_is_refused_in_words_and_nothing_is_stored(
    served, header, body, status, words
):
    client, store = served
    answer = client.post(STUDIES, content=body, headers={"content-type": header})
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert store.stats()["instances"] == 0
    assert post(client, ONE).status_code == 200


def test_bodies_and_parts_over_the_limits_are_413(tmp_path):
    with serving(tmp_path, limits={"body_bytes": 20_000, "parts": 2}) as (client, store):
        assert post(client, ONE, ONE, ONE).status_code == 413
        big = make_object("1.2.9", "1.1", "1.3", pixels=noise(30_000))
        assert post(client, big).status_code == 413
        assert client.post(STUDIES, content=iter([big]), headers={"content-type": DICOM}).status_code == 413
        assert store.stats()["instances"] == 0
        assert os.listdir(store.folder.spool) == []


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_studies_are_stored_by_post_alone(served, method):
    client, _ = served
    answer = client.request(method, STUDIES, content=ONE, headers={"content-type": DICOM})
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_packed_body_is_unpacked(served, encoding, pack):
    client, store = served
    body, headers = related([ONE, TWO])
    answer = client.post(STUDIES, content=pack(body), headers={**headers, "content-encoding": encoding})
    assert answer.status_code == 200
    assert store.read("1.2.2") == TWO


def test_a_packed_body_that_is_cut_broken_or_a_bomb_is_refused(served, monkeypatch):
    client, store = served
    monkeypatch.setattr(stow._Inflated, "FREE_BYTES", 1 << 20)
    body, headers = related([ONE])
    headers |= {"content-encoding": "gzip"}
    packed = gzip.compress(body)
    bomb = gzip.compress(body[:200] + bytes(8 << 20))

    assert client.post(STUDIES, content=packed[:-20], headers=headers).status_code == 400
    assert client.post(STUDIES, content=b"x" * 100, headers=headers).status_code == 400
    assert client.post(STUDIES, content=bomb, headers=headers).status_code == 413
    assert (
        client.post(STUDIES, content=packed, headers={**headers, "content-encoding": "br"}).status_code == 415
    )
    assert store.stats()["instances"] == 0


# --- Bodies that come in pieces, and do not come to an end -----------------------


def exchange(
    app: Any, chunks: Iterable[bytes], headers: dict[str, str], path: str = STUDIES, *, breaks: bool = False
) -> tuple[int, bytes]:
    """Post a body in these chunks, in this process; `breaks` is a client that goes away behind them."""
    return asyncio.run(send_to(app, chunks, headers, path, breaks=breaks))


async def send_to(
    app: Any,
    chunks: Iterable[bytes] | AsyncIterator[bytes],
    headers: dict[str, str],
    path: str = STUDIES,
    *,
    breaks: bool = False,
) -> tuple[int, bytes]:
    status, answered = 0, b""
    left = iter(chunks) if isinstance(chunks, Iterable) else None

    async def receive() -> dict[str, Any]:
        try:
            chunk = next(left) if left is not None else await anext(chunks)  # type: ignore[arg-type]
        except (StopIteration, StopAsyncIteration):
            if breaks:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, answered
        status = message.get("status", status)
        answered += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")] + [(k.encode(), v.encode()) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return status, answered


@contextlib.contextmanager
def application(folder: Path, **settings: Any) -> Iterator[tuple[Any, Store]]:
    with hilum.open(folder / "store", create=True) as store:
        app = make_app(store, msgspec.convert({"log": {"requests": False}, **settings}, Settings))
        try:
            yield app, store
        finally:
            app.close()


def cut(body: bytes, size: int) -> Iterator[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))


@pytest.mark.parametrize("size", [1, 7, 100, 4096])
def test_chunks_of_any_size_give_the_same_instances(tmp_path, size):
    body, headers = related([ONE, TWO])
    with application(tmp_path) as (app, store):
        assert exchange(app, cut(body, size), headers)[0] == 200
        assert [store.read("1.2.1"), store.read("1.2.2")] == [ONE, TWO]


@pytest.mark.parametrize("kind", ["in memory", "on the disk", "diverted"])
def test_a_client_that_goes_away_leaves_nothing_of_an_instance_that_was_not_whole(tmp_path, kind):
    sizes = {"in memory": 3000, "on the disk": 40 << 20, "diverted": 40 << 20}
    if kind == "on the disk":
        halves = [noise(sizes[kind] // 2, n) for n in range(2)]
        file = make_object("1.2.9", "1.1", "1.3", fragments=halves)
    else:
        file = make_object("1.2.9", "1.1", "1.3", pixels=noise(sizes[kind], 9))
    body, headers = related([ONE, file])
    with application(tmp_path) as (app, store):
        exchange(app, cut(body[:-400], 1 << 16), headers, breaks=True)

        assert store.stats()["instances"] == 0  # ONE neither: the request fits into one group
        assert os.listdir(store.folder.spool) == []
        assert app.state.stow.memory_left == stow.BUDGET_BYTES
        assert exchange(app, cut(body, 1 << 16), headers)[0] == 200
        assert store.read("1.2.9") == file
        assert problems_of(store) == []


def many(count: int, study: str = "1.1") -> list[bytes]:
    return [make_object(f"1.2.{study}.{n}", study, "1.3", pixels=noise(3000, n)) for n in range(count)]


def test_a_long_request_that_breaks_off_keeps_the_groups_that_were_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(stow, "BATCH_COUNT", 10)
    files = many(25)
    body, headers = related(files)
    with application(tmp_path) as (app, store):
        exchange(app, cut(body[:-400], 1000), headers, breaks=True)
        assert store.stats()["instances"] == 20

        status, answered = exchange(app, cut(body, 1000), headers)
        assert (status, len(orjson.loads(answered)[REFERENCED]["Value"])) == (200, 25)
        assert store.stats()["instances"] == 25


def test_a_long_body_that_goes_wrong_behind_whole_groups_is_202_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(stow, "BATCH_COUNT", 10)
    body, headers = related(many(25))
    with application(tmp_path) as (app, store):
        status, answered = exchange(app, cut(body[: body.rindex(b"\r\n--")], 1000), headers)

        document = orjson.loads(answered)
        assert status == 202
        assert len(document[REFERENCED]["Value"]) == store.stats()["instances"] == 24
        assert document[OTHER]["Value"][0]["00081197"]["Value"] == [0xC000]


def test_requests_that_are_whole_at_the_same_moment_share_a_commit(tmp_path, monkeypatch):
    groups = []
    real = stow_storing._submit

    def counted(store: Store, objects: list[Any], policy: Any) -> list[Any]:
        groups.append(len(objects))
        time.sleep(0.02)  # meanwhile the others come in
        return real(store, objects, policy)

    monkeypatch.setattr(stow_storing, "_submit", counted)
    files = many(20)

    async def all_of(app: Any) -> list[tuple[int, bytes]]:
        requests = [related([file]) for file in files]
        return await asyncio.gather(*(send_to(app, [body], headers) for body, headers in requests))

    with application(tmp_path) as (app, store):
        answers = asyncio.run(all_of(app))
        assert [status for status, _ in answers] == [200] * 20
        assert store.stats()["instances"] == sum(groups) == 20
        assert len(groups) <= 3


def test_one_instance_that_breaks_us_does_not_fail_the_requests_beside_it(tmp_path, monkeypatch):
    real = prepare.prepare

    def breaking(data: memoryview, **named: Any) -> Any:
        if b"1.2.1.1.3\0" in bytes(data):
            raise RecursionError
        return real(data, **named)

    monkeypatch.setattr(prepare, "prepare", breaking)

    async def all_of(app: Any) -> list[tuple[int, bytes]]:
        requests = [related([file]) for file in many(6)]
        return await asyncio.gather(*(send_to(app, [body], headers) for body, headers in requests))

    with application(tmp_path) as (app, _):
        answers = asyncio.run(all_of(app))
        assert sorted(status for status, _ in answers) == [200, 200, 200, 200, 200, 409]
        failed = next(orjson.loads(body) for status, body in answers if status == 409)
        assert failed[OTHER]["Value"][0]["00081197"]["Value"] == [0x0110]


def test_memory_that_is_short_sends_parts_to_the_disk_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(stow, "BUDGET_BYTES", 10_000)
    files = [make_object(f"1.2.{n}", "1.1", "1.3", pixels=noise(9000, n)) for n in range(12)]
    files.append(make_object("1.2.12", "1.1", "1.3", pixels=noise(90_000)))
    body, headers = related(files)
    with application(tmp_path) as (app, store):
        made = recorded(store)
        assert exchange(app, cut(body, 2000), headers)[0] == 200
        assert made[-1].is_spooled
        assert max(one.most_held for one in made) < 90_000
        assert [store.read(f"1.2.{n}") for n in range(13)] == files
        assert app.state.stow.memory_left == 10_000


# --- Large instances -------------------------------------------------------------


class Watched(prepare.Arrival):
    """An arrival that remembers how much it held in memory."""

    most_held = 0

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        super().write(chunk)
        self.most_held = max(self.most_held, self.held)


def recorded(store: Store) -> list[Watched]:
    """The arrivals that this store gives from now on, as it gives them."""
    made: list[Watched] = []
    real = store.arrival

    def arrival(**named: Any) -> Watched:
        one = real(**named)
        one.__class__ = Watched
        made.append(one)  # type: ignore[arg-type]
        return made[-1]

    store.arrival = arrival  # type: ignore[method-assign]
    return made


def test_large_native_pixels_are_written_once_and_all_others_come_out_whole(tmp_path):
    pixels = noise(36 << 20, 4)
    extra = [(0x00091010 + n, element(0x00091010 + n, "OB", noise(9 << 20, n))) for n in range(4)]
    files = [
        make_object("1.2.1", "1.1", "1.3", pixels=pixels),
        make_object("1.2.2", "1.1", "1.3", pixels=pixels)[: -(1 << 20)],
        make_object("1.2.3", "1.1", "1.3", pixels=pixels) + element(0xFFFCFFFC, "OB", bytes(90_000)),
        make_object("1.2.4", "1.1", "1.3", fragments=[noise(18 << 20, n) for n in range(2)]),
        make_object("1.2.5", "1.1", "1.3", pixels=noise(2000), extra=extra),
    ]
    with application(tmp_path) as (app, store):
        made = recorded(store)
        body, headers = related(files)
        status, answered = exchange(app, cut(body, 1 << 18), headers)

        assert status == 202
        assert len(orjson.loads(answered)[REFERENCED]["Value"]) == 5
        assert [one._diverted is not None for one in made] == [True, True, True, False, False]
        for number, file in enumerate(files, 1):
            assert store.read(f"1.2.{number}") == file
            with hilum.open(tmp_path / f"by itself {number}", create=True) as other:
                other.ingest(file)
                stored, beside = (
                    store.locate(f"1.2.{number}").instance,
                    other.locate(f"1.2.{number}").instance,
                )
                assert stored.identity == beside.identity
                assert stored.table_length == beside.table_length
        assert os.listdir(store.folder.spool) == []
        assert problems_of(store) == []


_TEN = """
import asyncio, os, re, sys, threading, time
import msgspec
sys.path.insert(0, sys.argv[2])
import hilum
from hilum.settings import Settings
from hilum.web.app import make_app
from makers import make_object
from test_web_stow import related, send_to

SIZE, CHUNK = int(sys.argv[3]), 1 << 16

def resident():
    with open("/proc/self/status") as file:
        return 1024 * sum(int(kb) for kb in re.findall(r"Rss(?:Anon|Shmem):\\s+(\\d+) kB", file.read()))

peak, over = 0, False
def watch():
    global peak
    while not over:
        peak = max(peak, resident())
        time.sleep(0.005)

async def upload(app, number):
    body, headers = related([make_object(f"1.2.{number}", "1.1", "1.3", pixels=b"--PIXELS--")])
    begin, end = body.split(b"--PIXELS--")
    begin = begin[:-4] + SIZE.to_bytes(4, "little")
    async def chunks():
        yield begin
        for at in range(SIZE // CHUNK):
            yield number.to_bytes(2, "little") + at.to_bytes(4, "little") + zeros
            await asyncio.sleep(0)
        yield end
    return await send_to(app, chunks(), headers)

zeros = bytes(CHUNK - 6)
async def main(app):
    return await asyncio.gather(*(upload(app, number) for number in range(1, 11)))

with hilum.open(sys.argv[1], create=True) as store:
    app = make_app(store, msgspec.convert({"log": {"requests": False}}, Settings))
    asyncio.run(send_to(app, [b""], {"content-type": "application/dicom"}))
    before = resident()
    thread = threading.Thread(target=watch)
    thread.start()
    answers = asyncio.run(main(app))
    over = True
    thread.join()
    lengths = {store.frames(f"1.2.{number}").read(0)[:2] for number in range(1, 11)}
    app.close()
print(peak - before, {status for status, _ in answers}, len(lengths))
"""


def test_ten_large_uploads_at_once_need_little_memory(tmp_path):
    size = 96 << 20  # each; a fifth of their sum is the bound, and for uploads of 1 GB it is the same
    answer = subprocess.run(
        [sys.executable, "-c", _TEN, str(tmp_path / "store"), str(Path(__file__).parent), str(size)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    grown, rest = answer.split(maxsplit=1)
    assert rest.strip() == "{200} 10"
    assert int(grown) < 200 << 20


# --- A store that fails ----------------------------------------------------------


def test_a_disk_without_room_is_503_before_anything_comes(served, monkeypatch):
    client, _ = served
    real = os.statvfs

    def full(path: str) -> Any:
        found = list(real(path))
        found[4] = 10  # f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(stow.os, "statvfs", full)
    answer = post(client, ONE)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    monkeypatch.setattr(stow.os, "statvfs", real)
    assert post(client, ONE).status_code == 200


def test_a_disk_that_fills_up_while_a_body_comes_is_503_and_leaves_nothing(tmp_path, monkeypatch):
    def full(fd: int, data: Any, at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    body, headers = related([make_object("1.2.9", "1.1", "1.3", fragments=[noise(34 << 20, 1)])])
    with application(tmp_path) as (app, store):
        exchange(app, cut(related([ONE])[0], 1 << 16), headers)
        with monkeypatch.context() as patch:
            patch.setattr("hilum.engine.prepare.os.pwrite", full)
            assert exchange(app, cut(body, 1 << 16), headers)[0] == 503
        assert os.listdir(store.folder.spool) == []
        assert exchange(app, cut(body, 1 << 16), headers)[0] == 200


def test_a_write_that_fails_is_503_and_the_server_goes_on_without_a_restart(served, monkeypatch):
    client, store = served
    assert post(client, ONE).status_code == 200

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(packs.os, "fdatasync", failing)
        answer = post(client, TWO)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert client.get(f"{STUDIES}").status_code == 200  # readers never stopped

    answer = post(client, TWO, *many(3))

    assert (answer.status_code, len(uids_of(answer, REFERENCED))) == (200, 4)
    assert [store.read("1.2.1"), store.read("1.2.2")] == [ONE, TWO]
    assert problems_of(store) == []


def test_a_store_that_is_open_for_reading_takes_nothing(tmp_path):
    with hilum.open(tmp_path / "store", create=True) as store:
        store.ingest(ONE)
    with hilum.open(tmp_path / "store", read_only=True) as store, client_of(store) as client:
        assert post(client, TWO).status_code == 403


def test_an_instance_whose_shared_pixels_went_meanwhile_is_prepared_again(served, monkeypatch):
    from hilum.engine.writer import Outcome, Result, Writer

    client, store = served
    real = Writer.submit
    told = []

    def once_again(self: Writer, objects: Any, policy: Any) -> list[Outcome]:
        if not told:
            told.append(len(objects))
            return [Outcome(Result.AGAIN, b"", 0)] * len(objects)
        return real(self, objects, policy)

    monkeypatch.setattr(Writer, "submit", once_again)
    assert post(client, ONE, TWO).status_code == 200
    assert told == [2]
    assert store.read("1.2.1") == ONE


def test_an_instance_that_never_can_be_stored_is_tried_a_few_times_and_fails(served, monkeypatch):
    from hilum.engine.writer import Outcome, Result, Writer

    client, _ = served
    again = Outcome(Result.AGAIN, b"", 0)
    monkeypatch.setattr(Writer, "submit", lambda self, objects, policy: [again] * len(objects))
    answer = post(client, ONE)
    assert (answer.status_code, reasons(answer)) == (409, [0x0110])


# --- Metadata and bulk data ------------------------------------------------------


def with_bulk(
    documents: bytes,
    bulk: Iterable[tuple[str, str, bytes]] = (),
    kind: str = JSON,
    boundary: str = "=_frontier",
) -> tuple[bytes, dict[str, str]]:
    """A request of metadata, and bulk data as (Content-Type, Content-Location, bytes)."""
    body = f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode() + documents + b"\r\n"
    for media_type, location, data in bulk:
        head = f"--{boundary}\r\nContent-Type: {media_type}\r\nContent-Location: {location}\r\n\r\n"
        body += head.encode() + data + b"\r\n"
    header = f'multipart/related; type="{kind}"; boundary="{boundary}"'
    return body + f"--{boundary}--\r\n".encode(), {"content-type": header}


def metadata(**more: Any) -> dict[str, Any]:
    """A data set of the JSON model, with further attributes as T00100010={...}."""
    return {
        "00080016": {"vr": "UI", "Value": [CT_IMAGE]},
        "00080018": {"vr": "UI", "Value": ["1.2.7"]},
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "00100020": {"vr": "LO", "Value": ["P1"]},
        "0020000D": {"vr": "UI", "Value": ["1.1"]},
        "0020000E": {"vr": "UI", "Value": ["1.3"]},
        "00200013": {"vr": "IS", "Value": [4]},
    } | {name[1:]: value for name, value in more.items()}


def picture(rows: int, columns: int, bits: int = 8, **more: Any) -> dict[str, Any]:
    return metadata(
        T00280002={"vr": "US", "Value": [1]},
        T00280004={"vr": "CS", "Value": ["MONOCHROME2"]},
        T00280010={"vr": "US", "Value": [rows]},
        T00280011={"vr": "US", "Value": [columns]},
        T00280100={"vr": "US", "Value": [bits]},
        T00280101={"vr": "US", "Value": [bits]},
        T00280102={"vr": "US", "Value": [bits - 1]},
        T00280103={"vr": "US", "Value": [0]},
        T7FE00010={"vr": "OW", "BulkDataURI": "bulk/pixels"},
        **more,
    )


def stored(store: Store, uid: str = "1.2.7") -> pydicom.FileDataset:
    return pydicom.dcmread(io.BytesIO(store.read(uid)))


def test_json_metadata_and_bulk_data_make_an_instance(served):
    client, store = served
    pixels = noise(64 * 32, 7)
    document = picture(
        64, 32, T00100010={"vr": "PN", "Value": [{"Alphabetic": "Müller^Jörg", "Phonetic": "x"}]}
    )
    body, headers = with_bulk(orjson.dumps([document]), [("application/octet-stream", "bulk/pixels", pixels)])

    answer = client.post(f"{STUDIES}/1.1", content=body, headers=headers)

    assert (answer.status_code, uids_of(answer, REFERENCED)) == (200, ["1.2.7"])
    found = stored(store)
    assert found.file_meta.TransferSyntaxUID == EXPLICIT_LE
    assert found.file_meta.MediaStorageSOPInstanceUID == "1.2.7"
    assert (found.SpecificCharacterSet, str(found.PatientName)) == ("ISO_IR 192", "Müller^Jörg==x")
    assert (found.InstanceNumber, found.PixelData) == (4, pixels)
    assert store.frame("1.2.7", 0).tobytes() == pixels


def test_xml_metadata_and_bulk_data_make_the_same_instance_as_json(served):
    from hilum.dicom.xml import to_xml

    client, store = served
    inner = {"00080100": {"vr": "SH", "Value": ["C"]}, "00420011": {"vr": "OB", "BulkDataURI": "bulk/deep"}}
    document = picture(2, 2, T00400260={"vr": "SQ", "Value": [inner, {}]})
    bulk = [
        ("application/octet-stream", "bulk/pixels", b"1234"),
        ("text/xml", "bulk/deep", b"<not><metadata/></not>"),
    ]
    for kind, data in ((JSON, orjson.dumps([document])), (XML, to_xml(document))):
        body, headers = with_bulk(data, bulk, kind)
        answer = client.post(STUDIES, content=body, headers=headers)
        assert answer.status_code == 200, answer.text  # the second is a duplicate of the first
    found = stored(store)
    assert [len(item) for item in found.PerformedProtocolCodeSequence] == [2, 0]
    assert found.PerformedProtocolCodeSequence[0].EncapsulatedDocument == b"<not><metadata/></not>"
    assert store.stats()["conflicts"] == 0


@pytest.mark.parametrize(("vr", "padded"), [("OB", b"123\0"), ("UN", b"123\0"), ("UT", b"123 ")])
def test_bulk_data_of_an_odd_length_are_padded_as_their_vr_wants_it(served, vr, padded):
    client, store = served
    document = metadata(
        T00420011={"vr": vr, "BulkDataURI": "odd"}, T00420012={"vr": "LO", "Value": ["text/plain"]}
    )
    body, headers = with_bulk(orjson.dumps([document]), [("application/octet-stream", "odd", b"123")])
    assert client.post(STUDIES, content=body, headers=headers).status_code == 200
    assert element(0x00420011, vr, padded) + element(0x00420012, "LO", "text/plain") in store.read("1.2.7")


def test_a_single_part_of_json_with_inline_binary_is_stored(served):
    client, store = served
    document = picture(2, 2) | {"7FE00010": {"vr": "OB", "InlineBinary": "AQIDBA=="}}
    answer = client.post(STUDIES, content=orjson.dumps([document]), headers={"content-type": JSON})
    assert answer.status_code == 200, answer.text
    assert stored(store).PixelData == b"\1\2\3\4"


def test_every_vr_comes_out_as_pydicom_reads_it(served):
    client, store = served
    document = metadata(
        T00080008={"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]},
        T00081190={"vr": "UR", "Value": ["http://a.b/c"]},
        T00180050={"vr": "DS", "Value": [0.1, 1e-30, "2.50", 123456789.123456789, 3, -0.00001]},
        T00189073={"vr": "FD", "Value": [1.5]},
        T00189074={"vr": "DT", "Value": ["20240101"]},
        T00280009={"vr": "AT", "Value": ["00181063", "0018106A"]},
        T00280106={"vr": "SS", "Value": [-5]},
        T00480302={"vr": "FD", "Value": ["NaN", "Infinity", "-Infinity"]},
        T00720064={"vr": "IS", "Value": [-1, "7", 2147483647]},
        T00720068={"vr": "LT", "Value": ["one\r\ntwo"]},
        T0072007C={"vr": "SL", "Value": [-70000]},
        T00720078={"vr": "UL", "Value": [4000000000]},
        T00720082={"vr": "SV", "Value": [-(2**60)]},
        T00720083={"vr": "UV", "Value": [2**63]},
        T0072006C={"vr": "SH"},
        T00720076={"vr": "FL", "Value": [0.5, -2]},
        T00191001={"vr": "UN", "InlineBinary": "AQI="},
        T00190010={"vr": "LO", "Value": ["ACME"]},
        T00720065={"vr": "OB", "InlineBinary": "AQID"},
        T00720070={"vr": "UT", "Value": ["日本"]},
    )
    body, headers = with_bulk(orjson.dumps([document]))

    assert client.post(STUDIES, content=body, headers=headers).status_code == 200
    found = stored(store)

    assert list(found.ImageType) == ["ORIGINAL", "", "AXIAL"]
    assert [str(value) for value in found[0x00180050].value] == [
        "0.1", "1e-30", "2.50", "123456789.123457", "3", "-1e-05",
    ]  # fmt: skip
    assert all(len(str(value)) <= 16 for value in found[0x00180050].value)
    assert found[0x00280009].value == [0x00181063, 0x0018106A]
    assert [str(value) for value in found[0x00480302].value] == ["nan", "inf", "-inf"]
    assert found[0x00720064].value == [-1, 7, 2147483647]
    assert found[0x00720068].value == "one\r\ntwo"
    assert [found[tag].value for tag in (0x0072007C, 0x00720078, 0x00720082, 0x00720083)] == [
        -70000, 4000000000, -(2**60), 2**63,
    ]  # fmt: skip
    assert found[0x00720076].value == [0.5, -2.0]
    assert found[0x0072006C].value in ("", None)
    assert (found[0x00191001].value, found[0x00720065].value) == (b"\1\2", b"\1\2\3\0")
    assert (found[0x00720070].value, found.SpecificCharacterSet) == ("日本", "ISO_IR 192")


def test_text_longer_than_its_vr_can_say_is_kept_as_un(served):
    client, store = served
    text = "1.5\\" * 20_000 + "1"
    document = metadata(T30060050={"vr": "DS", "Value": text.split("\\")})
    body, headers = with_bulk(orjson.dumps([document]))
    assert client.post(STUDIES, content=body, headers=headers).status_code == 200
    assert stored(store).get_item(0x30060050).VR == "UN"  # type: ignore[union-attr]
    assert stored(store)[0x30060050].value[:7] in (b"1.5\\1.5", [1.5] * 7)


def test_several_data_sets_in_one_request_each_have_their_item(served):
    client, store = served
    documents: list[Any] = [
        metadata() | {"00080018": {"vr": "UI", "Value": [f"1.2.{number}"]}} for number in range(1, 4)
    ]
    documents[1] |= {"00280010": {"vr": "US", "Value": ["many"]}}
    documents += ["no data set", {"00100010": {"vr": "PN"}}]
    body, headers = with_bulk(orjson.dumps(documents))

    answer = client.post(STUDIES, content=body, headers=headers)

    assert answer.status_code == 202
    assert uids_of(answer, REFERENCED) == ["1.2.1", "1.2.3"]
    assert (uids_of(answer, FAILED), reasons(answer)) == (["1.2.2"], [0xC000])
    assert reasons(answer, OTHER) == [0xC000, 0xA900]
    assert store.stats()["instances"] == 2


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (JSON, b"[{"),
        (JSON, b'{"00080018": 7}'),
        (JSON, b"[" * 5000),
        (JSON, b"\xff"),
        (XML, b"<NativeDicomModel>"),
        (XML, b"<!DOCTYPE a [<!ENTITY b 'c'>]><NativeDicomModel/>"),
        (XML, b"<Other/>"),
    ],
)
def test_metadata_that_can_not_be_read_are_a_failure_of_their_own(served, kind, data):
    client, _ = served
    body, headers = with_bulk(data, kind=kind)
    answer = client.post(STUDIES, content=body, headers=headers)
    assert answer.status_code == 409
    assert reasons(answer, OTHER)[0] in (0xC000, 0xA900)


@pytest.mark.parametrize(
    "attribute",
    [
        {"vr": "OB", "BulkDataURI": "bulk/nowhere"},
        {"vr": "OB", "BulkDataURI": 7},
        {"vr": "OB", "InlineBinary": "!"},
        {"vr": "OB", "Value": [1, 2]},
        {"vr": "US", "Value": [70_000]},
        {"vr": "US", "Value": [1.5]},
        {"vr": "US", "Value": "1"},
        {"vr": "LO", "Value": [{"Alphabetic": "x"}]},
        {"vr": "SQ", "Value": ["x"]},
        {"vr": "AT", "Value": ["xyz"]},
        {"vr": "lo", "Value": ["x"]},
        {"vr": 5},
        "nothing",
    ],
)
def test_an_attribute_that_is_none_is_a_failure_under_the_uid(served, attribute):
    client, _ = served
    body, headers = with_bulk(orjson.dumps([metadata(T00420011=attribute)]))
    answer = client.post(STUDIES, content=body, headers=headers)
    assert (answer.status_code, uids_of(answer, FAILED), reasons(answer)) == (409, ["1.2.7"], [0xC000])


def test_sequences_nested_without_end_are_a_failure(served):
    client, _ = served
    attribute: dict[str, Any] = {"vr": "SQ", "Value": [{}]}
    for _ in range(100):
        attribute = {"vr": "SQ", "Value": [{"00400260": attribute}]}
    body, headers = with_bulk(json.dumps([metadata(T00400260=attribute)]).encode())
    assert reasons(client.post(STUDIES, content=body, headers=headers)) == [0xC000]


@pytest.mark.parametrize(
    "locations",
    [
        ["bulk/pixels"] * 3,
        [f"bulk/pixels/frames/{number}" for number in (1, 2, 3)],
        [f"http://localhost{STUDIES.removesuffix('studies')}bulk/pixels"] * 3,
    ],
)
def test_compressed_frames_are_encapsulated_one_by_one(served, locations):
    client, store = served
    frames = [jpeg_2000_frame(number) for number in range(3)]
    document = picture(8, 8, T00280008={"vr": "IS", "Value": [3]})
    bulk = [("image/jp2", location, frame) for location, frame in zip(locations, frames, strict=True)]
    body, headers = with_bulk(orjson.dumps([document]), bulk)

    answer = client.post(STUDIES, content=body, headers=headers)

    assert answer.status_code == 200, answer.text
    assert stored(store).file_meta.TransferSyntaxUID == uids.JPEG_2000_LOSSLESS
    assert [store.frame_bytes("1.2.7", index).rstrip(b"\0") for index in range(3)] == [
        frame.rstrip(b"\0") for frame in frames
    ]
    fragment = 8 + len(frames[0]) + len(frames[0]) % 2
    offsets = pydicom.encaps.parse_basic_offsets(stored(store).PixelData)
    assert offsets == [0, fragment, 2 * fragment]
    assert [int(store.frame("1.2.7", index)[0, 0]) for index in range(3)] == [0, 1, 2]
    assert problems_of(store) == []


def jpeg_2000_frame(value: int, **options: Any) -> bytes:
    import imagecodecs
    import numpy as np

    return bytes(
        imagecodecs.jpeg2k_encode(
            np.full((8, 8), value, np.uint8), codecformat="j2k", reversible=True, **options
        )
    )


@pytest.mark.parametrize(
    ("media_type", "name", "options", "syntax"),
    [
        ("image/jpeg", "jpeg8_encode", {}, uids.JPEG_BASELINE),
        ("image/jpeg", "ljpeg_encode", {}, uids.JPEG_LOSSLESS),  # its predictor is another than the first
        ("image/jpeg", "jpeg8_encode", {"lossless": True, "predictor": 1}, uids.JPEG_LOSSLESS_SV1),
        ("image/jls", "jpegls_encode", {}, uids.JPEG_LS_LOSSLESS),
        ("image/x-jls", "jpegls_encode", {"level": 2}, uids.JPEG_LS_NEAR_LOSSLESS),
        ("image/jp2", "jpeg2k_encode", {"reversible": True}, uids.JPEG_2000_LOSSLESS),
        ("image/jp2", "jpeg2k_encode", {"level": 30}, uids.JPEG_2000),
        ("image/jphc", "htj2k_encode", {"reversible": True}, uids.HTJ2K_LOSSLESS),
        ("image/jphc", "htj2k_encode", {"reversible": False}, uids.HTJ2K),
    ],
)
def test_the_codestream_tells_its_transfer_syntax_and_what_the_metadata_leave_out(
    served, media_type, name, options, syntax
):
    import imagecodecs
    import numpy as np

    client, store = served
    array = (np.add.outer(np.arange(40), np.arange(24)) * 3).astype(np.uint8)
    frame = bytes(getattr(imagecodecs, name)(array, **options))
    document = metadata(T7FE00010={"vr": "OB", "BulkDataURI": "b"})
    body, headers = with_bulk(orjson.dumps([document]), [(media_type, "b", frame)])

    answer = client.post(STUDIES, content=body, headers=headers)

    assert answer.status_code == 200, answer.text
    found = stored(store)
    assert found.file_meta.TransferSyntaxUID == syntax
    assert (found.Rows, found.Columns, found.BitsAllocated) == (40, 24, 8)
    assert (found.SamplesPerPixel, found.PhotometricInterpretation) == (1, "MONOCHROME2")
    decoded = store.frame("1.2.7", 0)
    lossy = (uids.JPEG_BASELINE, uids.JPEG_LS_NEAR_LOSSLESS, uids.JPEG_2000, uids.HTJ2K)
    assert np.abs(decoded.astype(int) - array).max() <= (40 if syntax in lossy else 0)


def test_what_the_part_says_of_its_transfer_syntax_goes_before_all_else(served):
    client, store = served
    document = picture(8, 8, T00083002={"vr": "UI", "Value": [uids.JPEG_2000_LOSSLESS]})
    kind = f'image/jp2; transfer-syntax="{uids.JPEG_2000}"'
    body, headers = with_bulk(orjson.dumps([document]), [(kind, "bulk/pixels", jpeg_2000_frame(3))])
    assert client.post(STUDIES, content=body, headers=headers).status_code == 200
    assert stored(store).file_meta.TransferSyntaxUID == uids.JPEG_2000


@pytest.mark.parametrize(
    "media_type",
    ["image/png", "text/plain", f"application/octet-stream; transfer-syntax={uids.EXPLICIT_VR_BIG_ENDIAN}"],
)
def test_pixels_of_a_type_that_none_can_be_in_are_a_failure_with_its_own_code(served, media_type):
    client, _ = served
    body, headers = with_bulk(orjson.dumps([picture(2, 2)]), [(media_type, "bulk/pixels", b"1234")])
    answer = client.post(STUDIES, content=body, headers=headers)
    assert (answer.status_code, reasons(answer)) == (409, [0xC122])


def test_a_jp2_file_is_stored_as_the_codestream_in_it(served):
    client, store = served
    import imagecodecs
    import numpy as np

    array = np.arange(64, dtype=np.uint8).reshape(8, 8)
    file = bytes(imagecodecs.jpeg2k_encode(array, codecformat="jp2", reversible=True))
    body, headers = with_bulk(orjson.dumps([picture(8, 8)]), [("image/jp2", "bulk/pixels", file)])
    assert client.post(STUDIES, content=body, headers=headers).status_code == 200
    assert store.frame_bytes("1.2.7", 0).startswith(b"\xff\x4f\xff\x51")
    assert (store.frame("1.2.7", 0) == array).all()


def test_large_bulk_data_are_streamed_and_not_held(tmp_path):
    pixels = noise(40 << 20, 3)
    document = picture(6400, 6554)
    body, headers = with_bulk(orjson.dumps([document]), [("application/octet-stream", "bulk/pixels", pixels)])
    with application(tmp_path) as (app, store):
        assert exchange(app, cut(body, 1 << 18), headers)[0] == 200
        assert stored(store).PixelData == pixels
        assert os.listdir(store.folder.spool) == []
        assert app.state.stow.memory_left == stow.BUDGET_BYTES


def without_group_lengths(document: dict[str, Any]) -> dict[str, Any]:
    kept = {}
    for tag, attribute in document.items():
        if tag.endswith("0000") or tag == "00080005":
            continue
        if attribute["vr"] == "SQ":
            inner = [without_group_lengths(item) for item in attribute.get("Value", [])]
            attribute = {"vr": "SQ", "Value": inner}
        kept[tag] = attribute
    return kept


def as_metadata(dataset: pydicom.Dataset) -> tuple[dict[str, Any], list[bytes]]:
    """pydicom's JSON of a data set, and its bulk data by their number."""
    bulk: list[bytes] = []

    def handler(found: pydicom.DataElement) -> str:
        value = found.value
        bulk.append(value + b"\0" * (len(value) % 2) if isinstance(value, bytes) else b"?")
        return f"bulk/{len(bulk) - 1}"

    document = dataset.to_json_dict(512, handler, suppress_invalid_tags=True)
    return orjson.loads(orjson.dumps(without_group_lengths(document), default=str)), bulk


@pytest.mark.filterwarnings("ignore")
def test_metadata_and_bulk_data_of_real_files_give_the_data_sets_back(tmp_path, shared_files):
    """The oracle is pydicom: its JSON of a file, stored, must be its JSON of what was stored."""
    chosen = [path for path in shared_files.values() if path.stat().st_size < 200_000]
    random.Random(5).shuffle(chosen)
    count = 0
    with serving(tmp_path, log={"requests": False}) as (client, store):
        for path in chosen[:250]:
            try:
                dataset = pydicom.dcmread(path, force=True)
                syntax = dataset.file_meta.TransferSyntaxUID
                document, bulk = as_metadata(dataset)
            except Exception:
                continue  # pydicom can't say it
            if uids.is_encapsulated(syntax) or syntax not in (EXPLICIT_LE, IMPLICIT_LE) or b"?" in bulk:
                continue
            if not all(document.get(tag, {}).get("Value") for tag in ("00080016", "00080018", "0020000D")):
                continue
            count += 1
            uid = f"1.2.{count}"
            document["00080018"] = {"vr": "UI", "Value": [uid]}
            parts = [("application/octet-stream", f"bulk/{n}", data) for n, data in enumerate(bulk)]
            body, headers = with_bulk(orjson.dumps([document]), parts)
            answer = client.post(STUDIES, content=body, headers=headers)
            if answer.status_code == 409:
                assert "UID" in items(answer, FAILED)[0]["00000902"]["Value"][0], (path, answer.text)
                continue
            assert as_metadata(pydicom.dcmread(io.BytesIO(store.read(uid)))) == (document, bulk), path
    assert count > 100


# --- Every real file, and real clients -------------------------------------------


def test_every_real_file_that_can_be_stored_comes_back_byte_for_byte(tmp_path, shared_files):
    paths = list(shared_files.values())
    first: dict[str, bytes] = {}
    told = 0
    with (
        hilum.open(tmp_path / "beside", create=True) as beside,
        serving(tmp_path, log={"requests": False}) as (client, store),
    ):
        for begin in range(0, len(paths), 100):
            files = [path.read_bytes() for path in paths[begin : begin + 100]]
            wanted = []
            for data in files:
                try:
                    prepared = beside.prepare(data)
                except (BadDicom, NotDicom):
                    continue
                wanted.append((prepared.uid.decode("latin-1"), data))
            body, headers = related(files, boundary="=_" + "f" * 60)
            answer = client.post(STUDIES, content=body, headers=headers)
            assert answer.status_code in (200, 202, 409)
            kept = [
                uid
                for uid, why in zip(uids_of(answer, FAILED), reasons(answer), strict=True)
                if why == 0x0111
            ]
            taken = [*uids_of(answer, REFERENCED), *kept]
            assert sorted(taken) == sorted(uid for uid, _ in wanted)
            for uid, data in wanted:
                first.setdefault(uid, data)  # of several files under one UID
                assert store.read(uid) in (first[uid], data), uid
                told += 1
        assert told > 1000
        assert problems_of(store) == []


_SERVER = """
import sys, msgspec, uvicorn, hilum
from hilum.settings import Settings
from hilum.web.app import make_app
store = hilum.open(sys.argv[1], create=True)
app = make_app(store, msgspec.convert({"log": {"requests": False}}, Settings))
uvicorn.run(app, port=int(sys.argv[2]), loop="uvloop", http="httptools", access_log=False, log_level="error")
"""


@contextlib.contextmanager
def live(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server in a process of its own, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", _SERVER, str(folder), str(port)])
    try:
        base = f"http://127.0.0.1:{port}"
        for _ in range(200):
            with contextlib.suppress(httpx2.TransportError):
                httpx2.get(f"{base}/healthz")
                break
            time.sleep(0.05)
        yield f"{base}/dicom-web", process
    finally:
        process.kill()
        process.wait()


def test_dicomweb_client_stores_and_reads_our_answers(tmp_path):
    client_class = pytest.importorskip("dicomweb_client").DICOMwebClient
    datasets = [pydicom.dcmread(io.BytesIO(file)) for file in many(5)]
    with live(tmp_path / "store") as (url, _):
        client = client_class(url)
        answer = client.store_instances(datasets)
        assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [
            dataset.SOPInstanceUID for dataset in datasets
        ]
        datasets[0].PatientName = "Other"
        answer = client.store_instances([datasets[0], *datasets[3:]], study_instance_uid="1.1")
        assert [item.FailureReason for item in answer.FailedSOPSequence] == [0x0111]
        assert len(answer.ReferencedSOPSequence) == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_stores_with_chunked_transfer_and_a_large_file_with_a_pause_for_100_continue(tmp_path):
    body, headers = related([ONE, TWO, make_object("1.2.9", "1.1", "1.3", pixels=noise(5 << 20, 9))])
    (tmp_path / "body").write_bytes(body)
    with live(tmp_path / "store") as (url, _):
        for more in (["-H", "Transfer-Encoding: chunked"], []):
            answer = subprocess.run(
                [
                    *("curl", "-sS", "-w", "%{http_code}", "-o", "/dev/null", *more),
                    *("-H", f"Content-Type: {headers['content-type']}", "-H", f"Accept: {JSON}"),
                    *("--data-binary", f"@{tmp_path / 'body'}", f"{url}/studies"),
                ],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            assert answer.stdout == "200"
    with hilum.open(tmp_path / "store") as store:
        assert [store.read("1.2.1"), store.read("1.2.2")] == [ONE, TWO]


def test_a_killed_server_has_lost_nothing_of_what_it_answered(tmp_path):
    rounds = int(os.environ.get("HILUM_KILL_ROUNDS_STOW", "3"))
    acknowledged: dict[str, bytes] = {}
    for number in range(rounds):
        with live(tmp_path / "store") as (url, process):
            threads = [
                threading.Thread(target=send_until_killed, args=(url, number, sender, acknowledged))
                for sender in range(4)
            ]
            for thread in threads:
                thread.start()
            time.sleep(0.3 + random.Random(number).random())
            process.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
        with hilum.open(tmp_path / "store") as store:
            for uid, file in acknowledged.items():
                assert store.read(uid) == file
            assert problems_of(store) == []
            assert len(acknowledged) > number
            assert os.listdir(store.folder.spool) == []


def send_until_killed(url: str, number: int, sender: int, acknowledged: dict[str, bytes]) -> None:
    """Store one instance after the other, small and large; note those that were answered with 200."""
    with httpx2.Client() as client:
        for count in range(100_000):
            uid = f"1.2.{number}.{sender}.{count}"
            size = (3000, 40_000, 900_000)[(count + sender) % 3]
            file = make_object(uid, f"1.1.{sender}", "1.3", pixels=noise(size, count % 7))
            body, headers = related([file])
            try:
                answer = client.post(f"{url}/studies", content=body, headers=headers)
            except httpx2.TransportError:
                return
            assert answer.status_code == 200
            acknowledged[uid] = file

"""The rows of DICOMweb: what `hilum serve` gives over connections of this machine, beside what the machine
and others can do.

Server and client share the cores, and so do each peer and the same client. Processor time is that of a server
and all that it starts; it tells what other load of the machine hides.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import subprocess
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import client
import corpus
import measure
import orjson
import servers
import yardsticks
from client import ANY_SYNTAX, Ask, Client, Load
from measure import Times
from results import Check, Outcome
from rows import HERE, MB, PYTHON, Bench, hilum_command, mb, milli, room

import hilum
from hilum.dicom.layout import PIXEL_DATA, PixelLayout
from hilum.engine.writer import Result
from hilum.pixels import transcode

CONNECTIONS = 8
MEMORY_MORE = 200 * MB
JSON = "application/dicom+json"
FILES = 'multipart/related; type="application/dicom"; transfer-syntax=*'
AS_BROWSER = ("Accept-Encoding: gzip, deflate, br",)

# Why a required figure is not reached.
REASONS: dict[str, str] = {}

_NO_ORTHANC = ("Orthanc", "with its plugin not installed, so not measured")


# --- Frames ------------------------------------------------------------------------------------


def run_frames(bench: Bench) -> Outcome:
    small, large = (
        _frames(bench, "33 KB", corpus.SMALL_PIXELS, bench.size(20_000), bench.size(8_000)),
        _frames(bench, "525 KB", corpus.FULL_PIXELS, bench.size(500), bench.size(500)),
    )
    return Outcome(
        f"Frames as they are stored, {CONNECTIONS} connections that are kept, random frames of all.",
        [
            *small.facts,
            *large.facts,
            (
                "method",
                "one process that serves, one that asks, a request at a time on each connection; 5 rounds in "
                "turns after one that does not count; no frame twice in a round; "
                "the store is read before each, so warm; the server logs each request into a file",
            ),
            ("bare uvicorn", "the same loop and parser; two messages, the same body ever again, and no log"),
            (
                "asserted",
                "status, length and bytes of each answer (of those over 64 KB ends, and each eighth whole)",
            ),
        ],
        _LOAD_COLUMNS,
        [*small.lines, *large.lines],
        [
            Check("33 KB: rate to that of bare uvicorn", small.share, 0.4, "x", at_least=True),
            Check("525 KB: rate to that of bare uvicorn", large.share, 0.5, "x", at_least=True),
        ],
    )


class _Frames(NamedTuple):
    """What frames of one size came to."""

    lines: list[list[str]]
    facts: list[tuple[str, str]]
    share: float  # of the rate of bare uvicorn


def _frames(bench: Bench, name: str, pixels: int, count: int, part: int) -> _Frames:
    tree = _Tree(bench, count, pixels)
    rng = random.Random(corpus.SEED)
    body = rng.randbytes(pixels)
    at_bare = [Ask(client.get("", root="/"), body)] * part

    def some(accept: str = ANY_SYNTAX) -> list[Ask]:
        measure.warm(tree.store)  # before each round: some machines drop within seconds what is not used
        return tree.asks(rng.sample(range(count), part), accept)

    lines = []
    with servers.hilum_server(tree.store) as server, servers.bare_uvicorn(body) as bare:
        own = _Work(f"Hilum, {name}", server, some)
        limit = _Work(f"bare uvicorn, {name} (the limit)", bare, lambda: at_bare)
        single = partial(some, "application/octet-stream; transfer-syntax=*")
        works = [own, limit, _Work(f"Hilum, {name}, single part", server, single)]
        first = own.run()
        for _ in range(5):
            for work in works:
                work.run()
        if bench.cold and measure.drop_page_cache():
            lines.append(
                _load_line(f"Hilum, {name}, cold", client.closed_loop(server.port, some()[: part // 8]))
            )
    own.drop_first()
    lines = [
        *(work.line(own) for work in works),
        _load_line(f"Hilum, {name}, its first requests", first),
        *lines,
    ]
    facts = [(f"frames of {name}", tree.words())]
    # Orthanc has fewer: it takes a minute to store as many.
    numbers = range(min(count, bench.size(2_000 if pixels == corpus.SMALL_PIXELS else 200)))
    with _orthanc(bench, map(tree.read, numbers)) as orthanc:
        if orthanc is None:
            facts.append(_NO_ORTHANC)
        else:
            facts.append((f"Orthanc, {name}", f"{len(numbers):,} of the instances"))
            asked = tree.asks(rng.sample(numbers, len(numbers)))
            client.closed_loop(orthanc.port, asked[: len(asked) // 4], CONNECTIONS)
            load = client.closed_loop(orthanc.port, asked, CONNECTIONS)
            lines.append(_load_line(f"Orthanc, {name}", load, own.seconds()))
    tree.remove()
    return _Frames(lines, facts, measure.ratio(limit.seconds(), own.seconds()).median)


class _Tree:
    """A tree of files, and a store into which it was imported."""

    def __init__(self, bench: Bench, count: int, pixels: int, *, first: int = 0, store: str = "") -> None:
        self._folder = room(bench.disk, f"tree-{first}")
        self.source = os.path.join(self._folder, "source")
        self.store = store or os.path.join(self._folder, "store")
        self.first = first
        self.count = count
        self.pixels = pixels
        self.bytes = corpus.write_tree(self.source, count, pixels=pixels, first=first)
        if not store:
            self.check(measure.run_command(self.command(), sampled=False).output)

    def command(self, *options: str) -> list[str]:
        return hilum_command("import", self.source, "--store", self.store, "--json", *options)

    def check(self, output: str) -> None:
        found = json.loads(output.splitlines()[-1])
        if found["stored"] != self.count:
            raise AssertionError(f"not everything was stored: {found}")

    def read(self, number: int) -> bytes:
        with open(corpus.tree_path(self.source, number), "rb") as file:
            return file.read()

    def asks(self, numbers: Iterable[int], accept: str = ANY_SYNTAX) -> list[Ask]:
        """Requests for the frames of these instances, counted from the first."""
        return [
            Ask(
                client.get(f"{corpus.tree_slice(self.first + number)}/frames/1", accept),
                self.read(self.first + number)[-self.pixels :],
            )
            for number in numbers
        ]

    def words(self) -> str:
        studies, series = -(-self.count // corpus.STUDY_INSTANCES), -(-self.count // corpus.SERIES_INSTANCES)
        return f"{studies:,} studies, {series:,} series, {self.count:,} instances, {self.bytes:,} bytes"

    def remove(self) -> None:
        shutil.rmtree(self._folder)


class _Work:
    """A closed loop against one server, done several times."""

    def __init__(self, name: str, server: servers.Server, asks: Callable[[], Sequence[Ask]]) -> None:
        self.name = name
        self._server = server
        self._asks = asks
        self._loads: list[Load] = []
        self._processor: list[float] = []

    def run(self) -> Load:
        asks = self._asks()
        before = measure.processor(self._server.pid)
        load = client.closed_loop(self._server.port, asks, CONNECTIONS)
        self._processor.append((measure.processor(self._server.pid) - before) / len(asks))
        self._loads.append(load)
        return load

    def drop_first(self) -> None:
        del self._loads[0], self._processor[0]

    def seconds(self) -> Times:
        """Of a request, in each round."""
        return Times(tuple(1 / load.rate for load in self._loads))

    def line(self, own: _Work) -> list[str]:
        found = self.seconds()
        each = Times(tuple(value for load in self._loads for value in load.times.values))
        size = sum(load.bytes for load in self._loads) / len(each.values)
        return [
            self.name,
            f"{1 / found.median:,.0f}",
            *(f"{value * 1e3:.2f}" for value in (each.p50, each.p99)),
            f"{size / found.median / 1e6:,.0f}",
            f"{Times(tuple(self._processor)).median * 1e6:.0f}",
            f"{Times(tuple(load.busy for load in self._loads)).median:.0%}",
            "" if own is self else f"{measure.ratio(found, own.seconds()).median:.2f} x",
        ]


def _load_line(name: str, load: Load, own: Times | None = None) -> list[str]:
    return [
        name,
        f"{load.rate:,.0f}",
        *(f"{value * 1e3:.2f}" for value in (load.times.p50, load.times.p99)),
        f"{load.bytes / load.seconds / 1e6:,.0f}",
        "",
        f"{load.busy:.0%}",
        f"{1 / own.median / load.rate:.1f} x" if own else "",
    ]


# --- Searches ------------------------------------------------------------------------------------


def run_search(bench: Bench) -> Outcome:
    count = bench.size(100_000)
    path = os.path.join(room(bench.disk, "search"), "store")
    measure.run_command([PYTHON, os.path.join(HERE, "ingest.py"), "studies", str(count), path], sampled=False)
    about = [corpus.study(number) for number in range(count)]
    checks, lines = [], []
    with servers.hilum_server(path) as server, Client(server.port) as asking:
        for query in _queries(about):
            found = query.run(asking, query.count)
            lines.append(milli(query.name, found, query.rows))
            if query.bound:
                value = found.p99 if query.at == "p99" else found.p50
                checks.append(Check(f"{query.check} {query.at}", value * 1e3, query.bound, "ms"))
    facts = []
    few = about[: bench.size(1_000)]
    files = (data for first in range(0, len(few), 100) for data in corpus.studies(first, 100))
    with _orthanc(bench, files) as orthanc:
        if orthanc is None:
            facts.append(_NO_ORTHANC)
        else:
            facts.append(("Orthanc", f"{len(few):,} studies: it would take minutes to store all"))
            for query in _queries(few):
                if query.for_orthanc:
                    with Client(orthanc.port) as asking:
                        found = query.run(asking, query.for_orthanc, ordered=False)
                    lines.append(milli(f"Orthanc at {len(few):,} studies: {query.name}", found, query.rows))
    return Outcome(
        f"QIDO-RS at {count:,} studies, over one connection that is kept, one request after the other.",
        [
            ("data", f"{count:,} studies of one instance and {(count + 1) // 2:,} patients"),
            (
                "method",
                "each request of a line is another, so that few rows of an answer are kept from before, but "
                "where the line says again; warm; a viewer's requests take gzip, as those of browsers do",
            ),
            *facts,
            ("asserted", "the UIDs of every answer, in their order, against what the data must give"),
        ],
        ["query", "rows", "p50 ms", "p99 ms", "max ms"],
        lines,
        checks,
    )


class _Query:
    """One kind of question: requests, and the Study UIDs that must come."""

    def __init__(
        self,
        name: str,
        cases: list[tuple[str, list[str]]],
        count: int,
        check: tuple[str, str, float] = ("", "", 0.0),
        *,
        as_browser: bool = False,
        for_orthanc: int = 0,
        is_ordered: bool = True,
    ) -> None:
        self.name = name
        self.cases = cases
        self.count = count
        self.check, self.at, self.bound = check
        self.for_orthanc = for_orthanc
        self.rows = round(sum(len(uids) for _, uids in cases) / len(cases))
        self._headers = AS_BROWSER if as_browser else ()
        self._is_ordered = is_ordered

    def run(self, asking: Client, count: int, *, ordered: bool = True) -> Times:
        cases = (self.cases * -(-count // len(self.cases)))[:count]
        requests = [client.get(f"/studies?{query}", JSON, *self._headers) for query, _ in cases]
        found, answers = measure.each(lambda request: _kept(asking.ask(request)), requests)
        for (query, wanted), rows in zip(cases, answers, strict=True):
            uids = [row["0020000D"]["Value"][0] for row in orjson.loads(rows)]
            if not ordered and len(uids) == len(wanted):
                continue  # which of them come first is not for the Standard to say
            if (uids if self._is_ordered else sorted(uids)) != wanted:
                raise AssertionError(f"{query}: {uids[:3]}, not {wanted[:3]}")
        return found


def _kept(answer: client.Answer) -> bytes:
    """Its body, unpacked later: the next answer comes into the same buffer."""
    body = bytes(answer.body)
    return gzip.decompress(body) if b"content-encoding: gzip" in answer.head else body


def _queries(about: Sequence[corpus.Study]) -> Iterator[_Query]:
    rng = random.Random(corpus.SEED)
    newest = sorted(about, key=lambda one: (one.date, one.time), reverse=True)
    dates = [one.date for one in reversed(newest)]

    def between(first: str, last: str, limit: int) -> list[str]:
        """Of the studies of these days, the newest first."""
        end = len(newest) - bisect_right(dates, last)
        return [one.uid for one in newest[end : end + limit] if one.date >= first]

    def day() -> str:
        return rng.choice(dates[len(dates) // 10 :])

    def names(part: str) -> list[str]:
        return sorted(one.uid for one in about if part in one.name)

    patients = [rng.choice(about) for _ in range(1_000)]
    yield _Query(
        "PatientID",
        [(f"PatientID={one.patient_id}", _of_patient(about, one)) for one in patients],
        1_000,
        ("PatientID", "p50", 2),
        for_orthanc=100,
        is_ordered=False,
    )
    yield _Query(
        "100 newest up to some day",
        [(f"StudyDate=-{last}&limit=100", between("", last, 100)) for last in (day() for _ in range(300))],
        300,
        ("100 newest", "p50", 5),
    )
    yield _Query("100 newest, again", [("limit=100", between("", "9", 100))], 300, for_orthanc=10)
    parts = [rng.choice(about).name.split("^")[0][1:] for _ in range(100)]
    yield _Query(
        "PatientName=*some other*",
        [(f"PatientName=*{part}*&limit=5000", names(part)) for part in parts],
        100,
        ("wildcard name", "p50", 50),
        for_orthanc=20,
        is_ordered=False,
    )
    yield _Query(
        "PatientName=*SMI*, again",
        [("PatientName=*SMI*&limit=5000", names("SMI"))],
        50,
        for_orthanc=10,
        is_ordered=False,
    )
    listing = "limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060"
    days = [sorted((day(), day())) for _ in range(400)]
    yield _Query(
        "list of OHIF, between some days",
        [(f"{listing}&StudyDate={first}-{last}", between(first, last, 101)) for first, last in days],
        400,
        ("list of OHIF", "p99", 30),
        as_browser=True,
    )
    yield _Query(
        "list of OHIF as it opens, again",
        [(listing, between("", "9", 101))],
        400,
        as_browser=True,
        for_orthanc=10,
    )


def _of_patient(about: Sequence[corpus.Study], one: corpus.Study) -> list[str]:
    return sorted(about[number].uid for number in (one.number & ~1, one.number | 1) if number < len(about))


# --- Metadata --------------------------------------------------------------------------------------


def run_metadata(bench: Bench) -> Outcome:
    slices, series = bench.size(1_000), range(1, 11)
    path = os.path.join(room(bench.disk, "metadata"), "store")
    files = (corpus.ct_series(number, slices, pixels=corpus.TINY_PIXELS) for number in (0, *series))
    size = sum(_store(path, one) for one in files)
    with servers.hilum_server(path) as server, Client(server.port) as asking:

        def ask(number: int, *headers: str) -> bytes:
            return bytes(asking.ask(_metadata(number, *headers)).body)

        ask(0)  # what the server loads when it is asked for the first time is no part of a document
        works = {"identity": ask, "gzip": lambda number: ask(number, *AS_BROWSER)}
        halves = {"identity": series[::2], "gzip": series[1::2]}
        found, answers = {}, {}
        for name, work in works.items():
            found[name, "first"], answers[name] = measure.each(work, halves[name])
            for number, body in zip(halves[name], answers[name], strict=True):
                _check_metadata(gzip.decompress(body) if name == "gzip" else body, number, slices)
        for name, work in works.items():
            found[name, "again"], again = measure.each(work, list(halves[name]) * 10)
            if again != answers[name] * 10:
                raise AssertionError("the metadata of a series is not the same again")
    lines = [
        milli(f"Hilum, {name}, {when}", times, len(answers[name][0])) for (name, when), times in found.items()
    ]
    few = list(corpus.ct_series(0, bench.size(100), pixels=corpus.TINY_PIXELS))
    scale = slices / len(few)
    by_pydicom, sizes = measure.each(lambda _: yardsticks.pydicom_metadata(few), range(3))
    name = f"pydicom's to_json_dict, {len(few)} slices scaled to {slices:,}"
    lines.append(milli(name, by_pydicom.per(1 / scale), round(sizes[0] * scale)))
    facts = []
    with _orthanc(bench, few) as orthanc:
        if orthanc is None:
            facts.append(_NO_ORTHANC)
        else:
            with Client(orthanc.port) as asking:
                times, bodies = measure.each(lambda _: bytes(asking.ask(_metadata(0)).body), range(3))
            name = f"Orthanc, {len(few)} slices scaled to {slices:,}"
            lines.append(milli(name, times.per(1 / scale), round(len(bodies[0]) * scale)))
    required = {
        ("identity", "first"): 80,
        ("identity", "again"): 15,
        ("gzip", "first"): 150,
        ("gzip", "again"): 8,
    }
    return Outcome(
        f"Metadata of a series of {slices:,} slices of {corpus.ELEMENT_COUNT} elements, over one connection.",
        [
            ("data", f"{len(series)} such series of a study each, {size:,} bytes"),
            (
                "method",
                "first: a series that was never asked for, so its document has to be made, 5 of them; again: "
                "50 times, the document is kept packed; heads are in the page cache",
            ),
            *facts,
            ("asserted", "of each answer the UID of every slice, and that it has its elements"),
        ],
        ["answer", "bytes", "p50 ms", "p99 ms", "max ms"],
        lines,
        [
            Check(f"{name}, {when}", found[name, when].p50 * 1e3, bound, "ms")
            for (name, when), bound in required.items()
        ],
    )


def _metadata(number: int, *headers: str) -> bytes:
    return client.get(f"{corpus.series_path(number)}/metadata", JSON, *headers)


def _check_metadata(body: bytes, number: int, slices: int) -> None:
    rows = orjson.loads(body)
    about = corpus.study(number)
    wanted = {about.sop_uid(0, instance).decode() for instance in range(slices)}
    if {row["00080018"]["Value"][0] for row in rows} != wanted or min(map(len, rows)) < 200:
        raise AssertionError(f"the metadata of series {number} is not what it must be")


# --- Series ------------------------------------------------------------------------------------------


def run_series(bench: Bench) -> Outcome:
    small, large = range(20), range(20, 22)
    many = bench.size(200)
    path = os.path.join(room(bench.disk, "series"), "store")
    files = {number: list(corpus.ct_series(number, 50)) for number in small}
    files |= {number: list(corpus.ct_series(number, many, pixels=corpus.LARGE_PIXELS)) for number in large}
    for one in files.values():
        _store(path, one)
    rng = random.Random(corpus.SEED)
    length = sum(map(len, files[large[0]])) & ~((1 << 20) - 1)
    lines, facts = [], []
    with servers.hilum_server(path) as server, Client(server.port) as asking:
        own = _series_times(asking, files, rng.choices(small, k=200))
        lines.append(_series_line("Hilum, 50 x 39 KB", own, files[0]))
        with (
            servers.bare_uvicorn(rng.randbytes(1 << 20), length) as bare,
            Client(bare.port) as at_bare,
        ):
            rows: tuple[list[float], list[float]] = [], []
            for turn in range(13):
                measure.warm(path)  # some machines drop within seconds what is not used
                seconds = _series_times(asking, files, [large[turn % 2]]).values[0]
                limit, _ = measure.each(at_bare.ask, [client.get("", root="/")])
                if turn >= 3:
                    rows[0].append(seconds)
                    rows[1].append(limit.values[0])
        big, limits = (Times(tuple(row)) for row in rows)
    lines.append(_series_line(f"Hilum, {many} x 525 KB", big, files[large[0]]))
    lines.append(
        _series_line(
            f"bare uvicorn, {length:,} bytes in pieces of 1 MiB (the limit)", limits, [bytes(length)]
        )
    )
    with _orthanc(bench, (file for number in small[:4] for file in files[number])) as orthanc:
        if orthanc is None:
            facts.append(_NO_ORTHANC)
        else:
            with Client(orthanc.port) as asking:
                found = _series_times(asking, files, rng.choices(small[:4], k=40), check=_check_anyhow)
            lines.append(_series_line("Orthanc, 50 x 39 KB", found, files[0]))
    total = sum(len(file) for one in files.values() for file in one)
    rate = sum(map(len, files[large[0]])) / big.median / 1e9
    return Outcome(
        "A whole series, multipart as it is stored, over one connection that is kept.",
        [
            ("data", f"{len(small)} series of 50 x 39 KB, {len(large)} of {many} x 525 KB; {total:,} bytes"),
            ("method", "one request after the other, warm; the large ones in turns with bare uvicorn"),
            *facts,
            ("asserted", "every part of every answer, byte by byte"),
        ],
        ["series", "times", "p50 ms", "p99 ms", "max ms", "GB/s"],
        lines,
        [
            Check("50 x 39 KB p50", own.p50 * 1e3, 5, "ms"),
            Check("525 KB x 200", rate, 1, "GB/s", at_least=True),
        ],
    )


def _series_times(
    asking: Client,
    files: dict[int, list[bytes]],
    numbers: Sequence[int],
    check: Callable[[client.Answer, list[bytes]], None] | None = None,
) -> Times:
    found = []
    for number in numbers:
        request = client.get(corpus.series_path(number), FILES)
        times, (answer,) = measure.each(asking.ask, [request])
        (check or _check_parts)(answer, files[number])
        found.append(times.values[0])
    return Times(tuple(found))


def _check_parts(answer: client.Answer, files: list[bytes]) -> None:
    """The parts are these files, in their order, and there is nothing else."""
    body, at = answer.body, 0
    for file in files:
        at = bytes(body[at : at + 1_000]).index(b"\r\n\r\n") + 4 + at
        if body[at : at + len(file)].tobytes() != file:
            raise AssertionError("a part is not the file that came in")
        at += len(file)
        if bytes(body[at : at + 4]) != b"\r\n--":
            raise AssertionError("a part has no end")
    if len(body) - at > 200:
        raise AssertionError("there is more than what was asked for")


def _check_anyhow(answer: client.Answer, files: list[bytes]) -> None:
    """For who has another order."""
    body = bytes(answer.body)
    if not all(file in body for file in files):
        raise AssertionError("a file is missing")


def _series_line(name: str, found: Times, files: list[bytes]) -> list[str]:
    size = sum(map(len, files))
    return [*milli(name, found, len(found.values)), f"{size / found.median / 1e9:.2f}"]


# --- Pixels ------------------------------------------------------------------------------------------

_LITTLE = corpus.EXPLICIT_LE
_WINDOW = (40.0, 400.0)
_LAYOUT = PixelLayout(PIXEL_DATA, 1, corpus.PICTURE_SIDE, corpus.PICTURE_SIDE, 1, 16, 16, 0, 0, "MONOCHROME2")


def run_pixels(bench: Bench) -> Outcome:
    import imagecodecs

    count = bench.size(150, 8)
    frames = [corpus.ct_picture(number) for number in range(count)]
    packed = [transcode.frame(frame, _LAYOUT, _LITTLE, corpus.JPEG_2000) for frame in frames]
    path = os.path.join(room(bench.disk, "pixels"), "store")
    natives = list(corpus.ct_pictures(0, frames))
    _store(path, natives)
    _store(path, corpus.ct_pictures(1, packed, corpus.JPEG_2000))
    accept = f"multipart/related; type=application/octet-stream; transfer-syntax={_LITTLE}"
    warm = 5
    with servers.hilum_server(path) as server, Client(server.port) as asking:
        rows: tuple[list[float], list[float]] = [], []
        for number, frame in enumerate(frames):
            request = client.get(f"{corpus.slice_path(1, number)}/frames/1", accept)
            own, (answer,) = measure.each(asking.ask, [request])
            if frame not in bytes(answer.body):
                raise AssertionError(f"frame {number} was not decoded to what it was made of")
            alone, (decoded,) = measure.each(imagecodecs.jpeg2k_decode, [packed[number]])
            if decoded.tobytes() != frame:
                raise AssertionError("the codec alone gives something else")
            if number >= warm:
                rows[0].append(own.values[0])
                rows[1].append(alone.values[0])
        decoding, codec = (Times(tuple(row)) for row in rows)
        rendering, answers = measure.each(
            lambda number: bytes(asking.ask(_rendered(number)).body), range(count)
        )
        again, _ = measure.each(lambda number: bytes(asking.ask(_rendered(number)).body), range(count))
    alone, _ = measure.each(lambda frame: yardsticks.windowed_jpeg(frame, *_WINDOW), frames)
    for frame, picture in zip(frames, answers, strict=True):
        _check_picture(frame, picture)
    lines = [
        milli("Hilum, J2K decoded to little endian", decoding, len(decoding.values)),
        milli("OpenJPEG alone, the same codestreams (the limit)", codec, len(codec.values)),
        milli("Hilum, native rendered as JPEG with a window", Times(rendering.values[warm:]), count - warm),
        milli("Hilum, the same again", again, count),
        milli("numpy and Pillow alone, window and JPEG (the limit)", alone, count),
    ]
    facts = []
    with _orthanc(bench, natives[:50]) as orthanc:
        if orthanc is None:
            facts.append(_NO_ORTHANC)
        else:
            with Client(orthanc.port) as asking:
                times, _ = measure.each(
                    lambda number: bytes(asking.ask(_rendered(number)).body), range(len(natives[:50]))
                )
            lines.append(milli("Orthanc, native rendered as JPEG with a window", times, len(times.values)))
    return Outcome(
        "Frames that are decoded or rendered on the fly, 512 x 512 of 16 bits, over one connection.",
        [
            (
                "data",
                f"{count:,} distinct frames of {len(frames[0]):,} bytes, also as J2K of {len(packed[0]):,}",
            ),
            (
                "method",
                "one request after the other; each frame is asked for once but where the line says again, "
                f"and the first {warm} don't count, since workers start for them; the codec alone, of "
                "the same "
                "imagecodecs, in turns and in our process",
            ),
            *facts,
            (
                "asserted",
                "each decoded frame byte by byte; each JPEG within 2 grey levels of numpy's window, on "
                "the mean",
            ),
        ],
        ["work", "times", "p50 ms", "p99 ms", "max ms"],
        lines,
        [
            Check("decode to the codec alone", 1 / measure.ratio(codec, decoding).median, 1.2, "x"),
            Check("rendered p50", Times(rendering.values[warm:]).p50 * 1e3, 6, "ms"),
        ],
    )


def _rendered(number: int) -> bytes:
    window = ",".join(f"{value:.0f}" for value in _WINDOW)
    return client.get(f"{corpus.slice_path(0, number)}/rendered?window={window},linear", "image/jpeg")


def _check_picture(frame: bytes, picture: bytes) -> None:
    import numpy as np
    from PIL import Image

    seen = np.asarray(Image.open(io.BytesIO(picture)), dtype=np.float64)
    wanted = yardsticks.windowed(frame, *_WINDOW).astype(np.float64)
    if seen.shape != wanted.shape or np.abs(seen - wanted).mean() > 2:
        raise AssertionError("a rendered frame does not show what it must")


# --- Storing -----------------------------------------------------------------------------------------


def run_stow(bench: Bench) -> Outcome:
    part, sample, rounds = bench.size(1_500), bench.size(500), 3
    folder = room(bench.disk, "stow")
    path = os.path.join(folder, "store")
    hilum.open(path, create=True).close()
    numbers = iter(range(1_000))
    some: dict[int, bytes] = {}  # the first file of series that we were sent

    def asks(count: int, *, keep: bool = False) -> list[Ask]:
        made: list[Ask] = []
        while len(made) < count:
            number = next(numbers)
            files = list(corpus.ct_series(number, min(50, count - len(made))))
            made += [Ask(client.stow(file)) for file in files]
            if keep:
                some[number] = files[0]
        return made

    facts, checks = [], []
    with servers.hilum_server(path) as server, ExitStack() as stack:
        own = _Work("Hilum", server, lambda: asks(part, keep=True))
        works = [own]
        if yardsticks.dicomweb_plugin() is None:
            facts.append(_NO_ORTHANC)
        else:
            orthanc = stack.enter_context(_orthanc_in(os.path.join(folder, "orthanc")))
            works.append(_Work("Orthanc", servers.Server(orthanc.port, orthanc.pid), lambda: asks(sample)))
            facts.append(("Orthanc", f"{yardsticks.orthanc_version()}, SQLite, its settings as they come"))
        for _ in range(rounds + 1):
            for work in works:
                work.run()
        if len(works) > 1 and orthanc.instance_count() != sample * (rounds + 1):
            raise AssertionError("Orthanc did not store everything")
    for work in works:
        work.drop_first()
    with hilum.open(path, read_only=True) as store:
        if store.stats()["instances"] != part * (rounds + 1):
            raise AssertionError("not everything was stored")
        for number, file in some.items():
            if store.read(corpus.study(number).sop_uid(0, 0).decode()) != file:
                raise AssertionError(f"the first file of series {number} is not what came in")
    if len(works) > 1:
        share = measure.ratio(works[1].seconds(), own.seconds()).median
        checks.append(Check("rate to that of Orthanc", share, 3, "x", at_least=True))
    return Outcome(
        f"STOW-RS: instances of 39 KB, one in a request, {CONNECTIONS} connections that are kept.",
        [
            (
                "method",
                f"{rounds} rounds of {part:,} and, for Orthanc, {sample:,}, in turns after one that does not "
                "count",
            ),
            (
                "stores",
                f"both on {measure.file_system(folder)}; Hilum says 200 when it is durable, Orthanc sooner",
            ),
            *facts,
            ("asserted", "status of each answer; counts; the bytes of one instance in fifty"),
        ],
        _LOAD_COLUMNS,
        [work.line(own) for work in works],
        checks,
    )


# --- Memory ------------------------------------------------------------------------------------------


def run_memory(bench: Bench) -> Outcome:
    """Uploads of a gigabyte, ten at once; then one of five, and frames out of that."""
    free = shutil.disk_usage(bench.disk).free
    size = min(bench.size(1_000 * MB), free // 20)
    path = os.path.join(room(bench.disk, "memory"), "store")
    hilum.open(path, create=True).close()
    lines, checks = [], []
    rng = random.Random(corpus.SEED)
    with servers.hilum_server(path) as server:
        with Client(server.port) as asking:
            asking.ask(client.get("/studies?limit=1", JSON))
        before = measure.resident(server.pid)
        ten = [corpus.large_object(number, size) for number in range(10)]
        for name, objects in (
            (f"10 uploads of {size:,} bytes at once", ten),
            (f"an upload of {5 * size:,} bytes", [corpus.large_object(10, 5 * size)]),
        ):
            with measure.Sampler(server.pid) as sampler:
                seconds = _upload(server.port, objects)
            lines.append(_memory_line(name, sampler.peak, before, seconds, sum(one.size for one in objects)))
            checks.append(Check(name, (sampler.peak.total - before.total) / MB, MEMORY_MORE / MB, "MB"))
        (long,) = objects
        asked = [0, long.frame_count - 1, *(rng.randrange(long.frame_count) for _ in range(500))]
        asks = [Ask(client.get(f"{long.path}/{index + 1}", ANY_SYNTAX), long.frame(index)) for index in asked]
        with measure.Sampler(server.pid) as sampler:
            load = client.closed_loop(server.port, asks, CONNECTIONS)
        name = f"{len(asks)} frames out of that"
        lines.append(_memory_line(name, sampler.peak, before, load.seconds, load.bytes))
        checks.append(
            Check(
                "frames out of the largest", (sampler.peak.total - before.total) / MB, MEMORY_MORE / MB, "MB"
            )
        )
    return Outcome(
        "Memory of the server, over what it has before: RssAnon + RssShmem of all its processes.",
        [
            (
                "data",
                "native objects that are made while they are sent, and no byte of a block like another's",
            ),
            ("before", mb(before.total)),
            (
                "frames",
                f"p50 {load.times.p50 * 1e3:.2f} ms, p99 {load.times.p99 * 1e3:.2f} ms over {CONNECTIONS} "
                "connections",
            ),
            (
                "asserted",
                "status of each answer; the bytes of every frame, the first and the last of the object too",
            ),
        ],
        ["work", "memory more than before", "seconds", "MB/s"],
        lines,
        checks,
    )


def _upload(port: int, objects: Sequence[corpus.Large]) -> float:
    """Send them all at once, each over a connection of its own."""
    failures: list[BaseException] = []

    def send(one: corpus.Large) -> None:
        try:
            with Client(port) as sending:
                sending.send(client.stow_head(one.size))
                for piece in one.pieces():
                    sending.send(piece)
                sending.send(client.STOW_END)
                sending.read()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=send, args=(one,)) for one in objects]

    def send_all(_: object) -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    found, _ = measure.each(send_all, [None])
    if failures:
        raise failures[0]
    return found.values[0]


def _memory_line(
    name: str, peak: measure.Memory, before: measure.Memory, seconds: float, size: int
) -> list[str]:
    return [name, mb(peak.total - before.total), f"{seconds:.1f}", f"{size / seconds / 1e6:,.0f}"]


# --- Beside an import ------------------------------------------------------------------------------------


def run_beside(bench: Bench) -> Outcome:
    """Frames and searches at a fixed rate, alone and while files are imported."""
    rate, studies = 200, bench.size(20_000)
    path = os.path.join(room(bench.disk, "beside"), "store")
    measure.run_command(
        [PYTHON, os.path.join(HERE, "ingest.py"), "studies", str(studies), path], sampled=False
    )
    # Studies of other numbers than those that are there.
    first = studies * corpus.STUDY_INSTANCES
    stored = _Tree(bench, bench.size(2_000), corpus.SMALL_PIXELS, first=first, store=path)
    stored.check(measure.run_command(stored.command(), sampled=False).output)
    first += -(-stored.count // corpus.STUDY_INSTANCES) * corpus.STUDY_INSTANCES
    more = _Tree(bench, bench.size(60_000), corpus.SMALL_PIXELS, first=first, store=path)
    rng = random.Random(corpus.SEED)
    frames = stored.asks(rng.choices(range(stored.count), k=500))

    def frame() -> Ask:
        return rng.choice(frames)

    def search() -> Ask:
        return Ask(client.get(f"/studies?PatientID=PID{rng.randrange(studies // 2):08}", JSON), b"[{")

    def alone() -> Iterator[Ask]:
        for _ in range(bench.size(1_000)):
            yield frame()
            yield search()

    def as_long_as(process: subprocess.Popen[bytes]) -> Iterator[Ask]:
        while process.poll() is None:
            yield frame()
            yield search()

    with servers.hilum_server(path) as server:
        client.closed_loop(server.port, frames, CONNECTIONS)  # each frame has been read once
        quiet = client.open_loop(server.port, alone(), rate)
        process = subprocess.Popen(more.command("--jobs", "1"), stdout=subprocess.PIPE)
        busy = client.open_loop(server.port, as_long_as(process), rate)
        output, _ = process.communicate()
        more.check(output.decode())
    lines, checks = [], []
    for name, kind in (("frames", 0), ("PatientID", 1)):
        own, beside = (Times(load.times.values[kind::2]) for load in (quiet, busy))
        lines += [
            milli(f"{name}, alone", own, len(own.values)),
            milli(f"{name}, beside the import", beside, len(beside.values)),
        ]
        checks.append(
            Check(f"{name}, p99 beside an import", beside.p99 * 1e3, max(3 * own.p99 * 1e3, 20), "ms")
        )
    return Outcome(
        f"Frames of 33 KB and searches by PatientID in turns, {rate} requests a second whatever the answers "
        "do, while `hilum import --jobs 1` stores into the same store.",
        [
            (
                "data",
                f"{studies:,} studies of one instance, {stored.words()}; imported meanwhile: {more.words()}",
            ),
            (
                "method",
                "a time counts from the moment when a request was due, not from when it could be sent; "
                f"the import took {busy.seconds:.1f} s; store and files on {measure.file_system(bench.disk)}",
            ),
            ("asserted", "the bytes of each frame; rows of each search; that the import stored everything"),
        ],
        ["requests", "count", "p50 ms", "p99 ms", "max ms"],
        lines,
        checks,
    )


# --- What these rows share ---------------------------------------------------------------------------

_LOAD_COLUMNS = [
    "server", "a second", "p50 ms", "p99 ms", "MB/s", "processor µs each", "client's core", "Hilum is",
]  # fmt: skip


def _store(path: str, files: Iterable[bytes]) -> int:
    """Put files into a store; their bytes."""
    size, batch = 0, []
    with hilum.open(path, create=True) as store:
        for file in files:
            size += len(file)
            batch.append(store.prepare(file))
            if len(batch) == 100:
                _ingest(store, batch)
                batch.clear()
        _ingest(store, batch)
    return size


def _ingest(store: hilum.Store, batch: list[Any]) -> None:
    if store.ingest_many(batch) != [Result.STORED] * len(batch):
        raise AssertionError("not everything was stored")


@contextmanager
def _orthanc(bench: Bench, files: Iterable[bytes]) -> Iterator[yardsticks.Orthanc | None]:
    """Orthanc with its plugin and these files in it; None where that is not installed."""
    if yardsticks.dicomweb_plugin() is None:
        yield None
        return
    with _orthanc_in(os.path.join(room(bench.disk, "orthanc"), "server")) as orthanc:
        client.closed_loop(orthanc.port, [Ask(client.stow(file)) for file in files], CONNECTIONS)
        yield orthanc


def _orthanc_in(folder: str) -> yardsticks.Orthanc:
    return yardsticks.Orthanc(folder, yardsticks.dicomweb_plugin())


ROWS: dict[str, Callable[[Bench], Outcome]] = {
    "web-frames": run_frames,
    "web-search": run_search,
    "web-metadata": run_metadata,
    "web-series": run_series,
    "web-pixels": run_pixels,
    "web-stow": run_stow,
    "web-memory": run_memory,
    "web-beside": run_beside,
}

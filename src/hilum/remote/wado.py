"""Takes series; takes their instances from a DICOMweb server by WADO-RS, as they are stored there, and
hands them on. The multipart body is parsed as it comes.

PS3.18 10.4, Retrieve Transaction.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from urllib.parse import quote

from hilum._multipart import PART_BEGIN, PART_DATA, PART_END, Scanner
from hilum.errors import BadQuery
from hilum.remote.client import Answer, Client, Refused, Unreachable
from hilum.transfer.arriving import BATCH_BYTES, BATCH_COUNT, Coming
from hilum.transfer.fetch import Fetch
from hilum.transfer.hierarchy import Series

_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]+)"|([^;\s]+))', re.IGNORECASE)
_AGAIN_SECONDS = (1.0, 2.0, 4.0)


class Puller:
    """Takes what a Fetch hands out, by one connection in each thread that calls run()."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def run(self, fetch: Fetch) -> None:
        """Fetch until nothing is left.

        Raises:
            Unreachable, Refused: the server gives nothing.
            StoreFault, OSError: nothing more can be kept.
        """
        while (series := fetch.take()) is not None:
            self._pull(fetch, series)

    def _pull(self, fetch: Fetch, series: Series) -> None:
        left: Series | None = series
        words = "the server did not send it"
        waits = list(_AGAIN_SECONDS)
        while left is not None:
            try:
                for path in _paths(left):
                    if fetch.is_stopped:
                        return
                    self._take(fetch, path)
                break
            except Refused as failure:
                words = str(failure)
                if failure.status in (401, 403):
                    raise
                break
            except Unreachable as failure:
                words = str(failure)
                if not fetch.counts.fetched:
                    raise  # it has not worked once
                if not waits or fetch.is_stopped:
                    break
                time.sleep(waits.pop(0))
            left = fetch.rest(left)
        fetch.missed(series, words)

    def _take(self, fetch: Fetch, path: str) -> None:
        """One request, and what it gives."""
        answer = self._client.get(path, _ACCEPT)
        try:
            batch = _Batch(fetch, self._client.url)
            try:
                try:
                    for kind, data in _events(answer):
                        batch.take(kind, data)
                finally:
                    batch.flush()  # what has come whole is kept, also of an answer that was cut
            finally:
                batch.discard()
        finally:
            answer.close()


class _Batch:
    """Objects that have come, kept in groups; and the one that is coming."""

    def __init__(self, fetch: Fetch, source: str) -> None:
        self._fetch = fetch
        self._source = source
        self._coming: Coming | None = None
        self._whole: list[Coming] = []
        self._size = 0

    def take(self, kind: int, data: bytes) -> None:
        if kind == PART_BEGIN:
            self._coming = self._fetch.place.begin(self._source)
        elif kind == PART_DATA and self._coming is not None:
            self._coming.write(data)
            self._size += len(data)
        elif kind == PART_END and self._coming is not None:
            self._whole.append(self._coming)
            self._coming = None
            if len(self._whole) >= BATCH_COUNT or self._size >= BATCH_BYTES:
                self.flush()

    def flush(self) -> None:
        """Keep what has come whole."""
        whole, self._whole, self._size = self._whole, [], 0
        if whole:
            for answer in self._fetch.place.keep(whole):
                self._fetch.answer(answer)

    def discard(self) -> None:
        for coming in (*self._whole, *((self._coming,) if self._coming is not None else ())):
            coming.discard()


def _events(answer: Answer) -> Iterator[tuple[int, bytes]]:
    """Parts of a multipart body, or the one part that it is.

    Raises:
        Unreachable: the body is cut, or no multipart body.
    """
    content = answer.header("Content-Type")
    if content.lower().startswith("application/dicom") and "json" not in content:
        yield PART_BEGIN, b""
        while piece := answer.read():
            yield PART_DATA, piece
        yield PART_END, b""
        return
    found = _BOUNDARY.search(content)
    if found is None or not content.lower().startswith("multipart/"):
        raise Unreachable(f"the answer is {content[:80] or 'of no type'}, not multipart/related")
    scanner = Scanner((found[1] or found[2]).encode("latin-1"))
    try:
        while piece := answer.read():
            yield from scanner.feed(piece)
        scanner.finish()
    except BadQuery as failure:
        raise Unreachable(f"the answer is cut, or broken: {failure}") from None


def _paths(series: Series) -> Iterator[str]:
    """The requests for a series: as a whole, or for each of its instances."""
    path = f"/studies/{quote(series.study, safe='')}/series/{quote(series.series, safe='')}"
    if series.is_whole:
        yield path
        return
    for uid, _ in series.instances:
        yield f"{path}/instances/{quote(uid, safe='')}"

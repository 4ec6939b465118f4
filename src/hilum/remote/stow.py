"""Takes instances; sends them to a DICOMweb server by STOW-RS, several in a request, and says what became
of each. Files go as they are, in pieces: no body is ever in memory.

PS3.18 10.5, Store Transaction, and I.2, Store Instances Response Module.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from hilum.dicom.part10 import file_meta
from hilum.errors import BadDicom, HilumError
from hilum.remote.client import Answer, Broken, Client, Refused, Unreachable
from hilum.transfer.outgoing import Outgoing, Source
from hilum.transfer.work import Work

BATCH_COUNT = 64  # instances in a request
BATCH_BYTES = 16 << 20
_AGAIN_SECONDS = (1.0, 2.0, 4.0)  # before a request is made again
_OF_THE_BODY = (400, 413, 422, 500)  # statuses of a request that may be one instance's fault
_PASSING = (429, 502, 503, 504)
_ANSWER_TYPES = "application/dicom+json"

_UID, _REASON, _WARNING = "00081155", "00081197", "00081196"
_REFERENCED, _FAILED, _OTHER_FAILURES = "00081199", "00081198", "0008119A"

# PS3.18 I.2.2, Failure Reason; a family by its first digits.
_WORDS = {
    0x0110: "processing failure",
    0x0111: "it has other content under this UID",
    0x0122: "it does not support the SOP class",
    0x0124: "it does not allow that",
    0xA700: "out of resources",
    0xA900: "the data set does not match its SOP class",
    0xC122: "it does not support the transfer syntax",
    0xC000: "it can't understand it",
}


class _Result(NamedTuple):
    """What a server says of an instance."""

    is_stored: bool
    code: int  # of a failure, or a warning


class Pusher:
    """Sends what a Work hands out, by one connection in each thread that calls run()."""

    def __init__(self, client: Client, source: Source) -> None:
        self._client = client
        self._source = source

    def run(self, work: Work) -> None:
        """Send until nothing is left.

        Raises:
            Unreachable, Refused: the server takes nothing, whatever is sent.
        """
        while batch := _batch(work):
            self._send(work, batch)

    def _send(self, work: Work, batch: list[Outgoing]) -> None:
        """Send a batch, or what can be sent of it: some servers take nothing of a request in which they
        can't read one part, and don't say which."""
        try:
            answer = self._answer(work, batch)
        except _UnreadableError as failure:
            work.failed(failure.one, None, str(failure))
            self._send_parts(work, [[one for one in batch if one is not failure.one]])
            return
        except HilumError as failure:
            is_theirs = isinstance(failure, Broken) or (
                isinstance(failure, Refused) and failure.status in _OF_THE_BODY
            )
            if not is_theirs or work.is_stopped:
                _put_back(work, batch)
                raise
            if len(batch) == 1:
                work.failed(batch[0], None, str(failure))
                return
            middle = len(batch) // 2
            self._send_parts(work, [batch[:middle], batch[middle:]])
            return
        _tell(work, batch, _results(answer))

    def _send_parts(self, work: Work, parts: list[list[Outgoing]]) -> None:
        for at, part in enumerate(parts):
            try:
                if part:
                    self._send(work, part)
            except HilumError:
                for later in reversed(parts[at + 1 :]):
                    _put_back(work, later)
                raise

    def _answer(self, work: Work, batch: list[Outgoing]) -> Any:
        """What the server says of a batch. A server that can't be reached is tried again, once it has
        worked."""
        waits = list(_AGAIN_SECONDS) if work.counts.sent else []
        while True:
            try:
                return self._post(batch)
            except Broken as failure:
                if not failure.was_idle:
                    raise
            except (Unreachable, Refused) as failure:
                is_passing = isinstance(failure, Unreachable) or failure.status in _PASSING
                if not is_passing or not waits or work.is_stopped:
                    raise
                time.sleep(waits.pop(0))

    def _post(self, batch: list[Outgoing]) -> Any:
        """The server's answer: DICOM JSON.

        Raises:
            Unreachable, Refused: there is none.
            _UnreadableError: an instance can't be read.
        """
        boundary = uuid.uuid4().hex
        parts = [(self._head(one), one) for one in batch]
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        end = f"--{boundary}--\r\n".encode()
        length = sum(len(head) + len(meta) + _length(one) + 2 for meta, one in parts) + len(end)
        body = self._body(parts, head, end)
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": _ANSWER_TYPES,
        }
        try:
            answer = self._client.post("/studies", headers, body, length)
        except (_UnreadableError, HilumError):
            self._client.drop()
            raise
        if answer.status not in (200, 202, 409):
            raise self._client.refusal(answer)
        return _document(answer)

    def _head(self, one: Outgoing) -> bytes:
        """What has to go before a file that has no File Meta Information."""
        return b"" if one.is_part10 else file_meta(one.sop_class, one.uid, one.transfer_syntax)

    def _body(self, parts: Iterable[tuple[bytes, Outgoing]], head: bytes, end: bytes) -> Iterator[bytes]:
        for _, one in parts:
            yield head
            left = _length(one) + len(self._head(one))
            try:
                for piece in self._source.file(one):
                    left -= len(piece)
                    yield piece
            except (HilumError, OSError) as failure:
                words = failure.strerror if isinstance(failure, OSError) else str(failure)
                raise _UnreadableError(one, str(words)) from None
            if left:
                raise _UnreadableError(one, "it has another length than before")
            yield b"\r\n"
        yield end


class _UnreadableError(Exception):
    """An instance can't be read, in the middle of a request."""

    def __init__(self, one: Outgoing, words: str) -> None:
        super().__init__(words)
        self.one = one


def _length(one: Outgoing) -> int:
    """Bytes that come from where it lies."""
    return one.size if one.is_part10 else one.size - max(0, one.data_set_at)


def _put_back(work: Work, batch: list[Outgoing]) -> None:
    for one in reversed(batch):
        work.put_back(one)


def _tell(work: Work, batch: list[Outgoing], results: dict[str, _Result]) -> None:
    for one in batch:
        found = results.get(one.uid)
        if found is None:
            # One that it can't read has no name there.
            work.failed(one, None, "the server does not say what became of it")
        elif found.is_stored:
            work.sent(one, found.code, "it was stored with a warning" if found.code else "")
        else:
            words = _WORDS.get(found.code) or _WORDS.get(found.code & 0xFF00) or "it was not stored"
            work.failed(one, found.code, words)


def _batch(work: Work) -> list[Outgoing]:
    batch: list[Outgoing] = []
    size = 0
    while len(batch) < BATCH_COUNT and size < BATCH_BYTES:
        one = work.take()
        if one is None:
            break
        if any(other.uid == one.uid for other in batch):
            work.put_back(one)  # of two with one UID the answer could not be told apart
            break
        batch.append(one)
        size += one.size
    return batch


# --- The answer ----------------------------------------------------------------------


def _document(answer: Answer) -> Any:
    body = answer.read_all()
    if not body:
        return {}
    try:
        if "xml" in answer.header("Content-Type"):
            from hilum.dicom.xml import from_xml

            return from_xml(body)
        found: Any = orjson.loads(body)
    except (orjson.JSONDecodeError, BadDicom):
        raise Unreachable("its answer can't be read; is this a DICOMweb server?") from None
    return found[0] if isinstance(found, list) and found else found


def _results(document: Any) -> dict[str, _Result]:
    """What the server says of each instance, by SOP Instance UID."""
    found: dict[str, _Result] = {}
    if not isinstance(document, dict):
        return found
    for name, is_stored in ((_FAILED, False), (_REFERENCED, True)):
        for item in document.get(name, {}).get("Value", ()):
            uid = _value(item, _UID)
            if uid:
                code = _value(item, _WARNING if is_stored else _REASON)
                found[str(uid)] = _Result(is_stored, int(code or 0))
    return found


def _value(item: Any, name: str) -> Any:
    values = item.get(name, {}).get("Value") if isinstance(item, dict) else None
    return values[0] if values else None

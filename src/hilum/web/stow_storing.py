"""Takes files and metadata that have come whole; stores them, and tells what became of each. Speaks no HTTP,
and waits for the disk: it runs on threads.

The codes are those of the Store Instances Response Module, PS3.18 I.2.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hilum.api import Store
from hilum.engine import record
from hilum.engine.prepare import Arrival, Prepared
from hilum.engine.writer import Outcome, Policy, Result
from hilum.errors import BadDicom, Corrupt, HilumError, NotDicom, StoreBroken, StoreFault
from hilum.web.stow_metadata import (
    METADATA_BYTES_MAX,
    Document,
    Parts,
    UnsupportedSyntax,
    encode,
    read_metadata,
    uid_in,
)

JSON_TYPES = ("application/dicom+json", "application/json")
XML_TYPES = ("application/dicom+xml", "application/xml", "text/xml")

BATCH_COUNT = 64  # files in one commit
BATCH_BYTES = 8 << 20
AGAIN_MAX = 3

# PS3.18 I.2.2, Failure Reason; it leaves the codes inside of a range, and further ones, to us.
NOT_AS_ITS_CLASS = 0xA900  # it can be read, and lacks a UID that every instance has
OF_ANOTHER_STUDY = 0xA901
CANNOT_UNDERSTAND = 0xC000
SYNTAX_NOT_SUPPORTED = 0xC122
PROCESSING_FAILURE = 0x0110
DUPLICATE_SOP_INSTANCE = 0x0111  # of PS3.7 C: other content is stored under this UID, and is kept

# PS3.18 I.2.1, Warning Reason: stored all the same.
CUT_PIXELS = 0xB007  # the data set does not match its SOP class: Pixel Data is shorter than it says
REPLACED = 0xB001  # a code of ours: what was stored under this UID is kept as a revision

_log = logging.getLogger("hilum.web")

_SOP_CLASS = record.NUMBER_OF[0x00080016]
_UID = re.compile(r"[0-9A-Za-z._ -]{1,128}")


class Item(NamedTuple):
    """What became of one part. Empty UIDs: it does not say what it is."""

    uid: str = ""
    sop_class: str = ""
    study: str = ""
    series: str = ""
    reason: int = 0  # why it is not stored; 0 when it is
    warning: int = 0
    words: str = ""

    @property
    def is_stored(self) -> bool:
        return self.reason == 0


class Batch(NamedTuple):
    """Whole files of one request."""

    arrivals: Sequence[Arrival]
    study: bytes  # the one that all must belong to, b"" for any
    policy: Policy


def store_batches(store: Store, batches: Sequence[Batch]) -> list[list[Item]]:
    """Store files that have come whole, in one commit, and let go of them; tell what became of each.

    Raises:
        StoreBroken: the store could not write. Nothing is promised of these; the next call recovers.
        OSError: a spooled file can't be read.
    """
    answers: list[list[Item]] = [[Item()] * len(batch.arrivals) for batch in batches]
    ready: list[_Ready] = []
    try:
        for items, batch in zip(answers, batches, strict=True):
            for index, arrival in enumerate(batch.arrivals):
                found = _prepare(arrival, batch.study)
                if isinstance(found, Item):
                    items[index] = found
                else:
                    ready.append(_Ready(found, arrival, items, index))
        tries = 0
        while ready:
            group, ready = ready, []
            outcomes = _submit(store, [one.prepared for one in group], batches[0].policy)
            tries += 1
            for one, outcome in zip(group, outcomes, strict=True):
                if outcome.result != Result.AGAIN:
                    one.items[one.place] = _item_of(one.prepared, outcome.result)
                elif tries < AGAIN_MAX and one.arrival.can_finish_again:
                    ready.append(one._replace(prepared=one.arrival.finish()))
                else:
                    words = "what it shares with another instance went at that moment: send it again"
                    item = _item_of(one.prepared)._replace(reason=PROCESSING_FAILURE, words=words)
                    one.items[one.place] = item
    finally:
        for one in ready:
            one.prepared.discard()
        for batch in batches:
            for arrival in batch.arrivals:
                arrival.discard()
    return answers


class _Ready(NamedTuple):
    """An object for the writer, and where its item goes."""

    prepared: Prepared
    arrival: Arrival
    items: list[Item]
    place: int  # among the items


class Documents(NamedTuple):
    """Metadata and bulk data of one request."""

    parts: Parts
    root: str  # media type of the metadata
    syntax: str
    study: bytes
    policy: Policy
    source: str


def store_documents(store: Store, job: Documents) -> list[Item]:
    """Make a file of each data set in the metadata, and store them in groups, durably.

    Raises:
        StoreBroken, OSError: see store_batches().
    """
    items: list[Item] = []
    arrivals: list[Arrival] = []
    places: list[int] = []  # of the arrivals among the items

    def commit() -> None:
        batch = Batch(list(arrivals), job.study, job.policy)
        arrivals.clear()
        for place, item in zip(places, store_batches(store, [batch])[0], strict=True):
            items[place] = item
        places.clear()

    try:
        for document in _documents_in(job):
            if isinstance(document, BadDicom):
                items.append(Item(reason=CANNOT_UNDERSTAND, words=document.reason))
                continue
            found = _arrival_of(store, job, document)
            if isinstance(found, Item):
                items.append(found)
                continue
            places.append(len(items))
            items.append(Item())
            arrivals.append(found)
            if len(arrivals) >= BATCH_COUNT or sum(arrival.length for arrival in arrivals) >= BATCH_BYTES:
                commit()
        if arrivals:
            commit()
    finally:
        for arrival in arrivals:
            arrival.discard()
    return items


def _documents_in(job: Documents) -> Iterator[Document | BadDicom]:
    """The data sets of all parts that are metadata."""
    for part in job.parts.parts:
        # What has a location is bulk data, whatever its type: an encapsulated document may be XML.
        is_own_type = part.type in ("application/dicom+json", "application/dicom+xml")
        if not is_own_type and (part.location or part.type != job.root):
            continue
        if part.length > METADATA_BYTES_MAX:
            yield BadDicom(f"metadata of more than {METADATA_BYTES_MAX:,} bytes are not taken")
            continue
        try:
            yield from read_metadata(job.parts.read(part), is_xml=part.type in XML_TYPES)
        except BadDicom as failure:
            yield failure


def _arrival_of(store: Store, job: Documents, document: Document) -> Arrival | Item:
    """The file of a data set; what to say of one that none can be made of."""
    uid, sop_class = uid_in(document, "00080018"), uid_in(document, "00080016")
    if not (uid and sop_class):
        words = "the metadata have no SOP Instance UID or no SOP Class UID"
        return Item(uid, sop_class, reason=NOT_AS_ITS_CLASS, words=words)
    arrival = store.arrival(source=job.source)
    try:
        for piece in encode(document, job.parts, job.syntax):
            arrival.write(piece)
    except BadDicom as failure:
        arrival.discard()
        unsupported = isinstance(failure, UnsupportedSyntax)
        reason = SYNTAX_NOT_SUPPORTED if unsupported else CANNOT_UNDERSTAND
        return Item(uid, sop_class, reason=reason, words=failure.reason)
    except BaseException:
        arrival.discard()
        raise
    return arrival


def _submit(store: Store, objects: list[Prepared], policy: Policy) -> list[Outcome]:
    writer = store.writer
    try:
        return writer.submit(objects, policy)
    except StoreBroken:
        store.renew_writer(writer)
        raise


def _prepare(arrival: Arrival, study: bytes) -> Prepared | Item:
    try:
        prepared = arrival.finish()
    except (NotDicom, BadDicom, Corrupt) as failure:
        return _refused(arrival, failure)
    except (StoreFault, OSError):
        raise
    except Exception as failure:
        # Whatever a hostile file does to us, it does not do it to those that are stored beside it.
        _log.error("a file could not be prepared", exc_info=failure)
        return Item(reason=PROCESSING_FAILURE, words="the server failed on this one; its log says where")
    if study and prepared.study != study:
        prepared.discard()
        words = f"it belongs to study {prepared.study.decode('latin-1')}"
        return _item_of(prepared)._replace(reason=OF_ANOTHER_STUDY, words=words)
    return prepared


def _item_of(prepared: Prepared, result: Result = Result.STORED) -> Item:
    """A stored instance, or one that is in conflict with what is stored."""
    item = Item(
        prepared.uid.decode("latin-1"),
        record.raw_of(prepared.own, _SOP_CLASS).decode("latin-1"),
        prepared.study.decode("latin-1"),
        prepared.series.decode("latin-1"),
    )
    if result == Result.CONFLICT:
        words = "other content is stored under this UID, and is kept"
        return item._replace(reason=DUPLICATE_SOP_INSTANCE, words=words)
    if result == Result.REPLACED:
        return item._replace(warning=REPLACED, words="it took the place of other content under this UID")
    if prepared.flags & record.TRUNCATED:
        return item._replace(warning=CUT_PIXELS, words="Pixel Data is shorter than it says")
    return item


def _refused(arrival: Arrival, failure: HilumError) -> Item:
    names = arrival.names()
    reason = CANNOT_UNDERSTAND
    if isinstance(failure, Corrupt):
        reason = PROCESSING_FAILURE
    elif names.is_whole:
        reason = NOT_AS_ITS_CLASS
    words = failure.reason if isinstance(failure, BadDicom) else str(failure)
    return Item(_uid_text(names.uid), _uid_text(names.sop_class), reason=reason, words=words)


def _uid_text(uid: bytes) -> str:
    text = uid.decode("latin-1")
    return text if _UID.fullmatch(text) else ""

"""Takes a question and an archive that answers one level at a time; gives the rows that match, with
attributes of the levels above. Matches nothing itself: that is the archive's.

PS3.4 C.4.1.3.1.1, Hierarchical Search Method: a query has the unique keys of the levels above it, so that
whoever asks for the series of a patient asks for the studies first.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from hilum.dicom import dictionary
from hilum.dicom.dictionary import Path
from hilum.dicom.json import key as key_of
from hilum.dicom.json import text_of
from hilum.engine.question import UNIQUE_KEYS, level_of_path
from hilum.engine.record import INSTANCE, PATIENT, SERIES, STUDY
from hilum.errors import BadQuery

Document = dict[str, Any]
Pair = tuple[Path, str]

NAME_OF = {PATIENT: "patients", STUDY: "studies", SERIES: "series", INSTANCE: "instances"}
LEVEL_OF = {name: level for level, name in NAME_OF.items()}
_MODALITY, _MODALITIES_IN_STUDY = 0x00080060, 0x00080061
_WILD = "\\*?,"


class Archive(Protocol):
    """Who answers questions."""

    @property
    def top(self) -> int:
        """The highest level that questions go through: studies, or patients."""
        ...

    @property
    def is_relational(self) -> bool:
        """Whether a question may have keys of all levels at once."""
        ...

    def ask(self, level: int, keys: Sequence[Pair], include: Sequence[Path]) -> Iterator[Document]:
        """The rows of one level; the unique keys of the levels above are among the keys. Closing the iterator
        tells the archive to stop."""
        ...


class Question(NamedTuple):
    """What is asked for."""

    level: int
    keys: Sequence[Pair]
    include: Sequence[Path] = ()  # what rows must have, of any level


def parse_pairs(pairs: Iterable[tuple[str, str]]) -> list[Pair]:
    """Keys by name to keys by path.

    Raises:
        BadQuery: an unknown name.
    """
    return [(dictionary.path_of(name), text) for name, text in pairs]


def deepest(keys: Iterable[Pair]) -> int:
    """The lowest level that a key speaks of; patients, where there is none."""
    return max((level_of_path(path) for path, _ in keys), default=PATIENT)


def rows(archive: Archive, question: Question) -> Generator[Document]:
    """The rows that match, with the attributes that were asked for of the levels above. close() it where
    not all are wanted: then the archive is told to stop."""
    level = question.level
    if level == PATIENT or archive.is_relational:
        yield from archive.ask(level, _told(question.keys, level), question.include)
        return
    at = min(level, archive.top)
    keys: dict[int, list[Pair]] = {}
    for path, text in question.keys:
        keys.setdefault(_place(path, at, level), []).append((path, text))
    include: dict[int, list[Path]] = {}
    for path in question.include:
        include.setdefault(_place(path, at, level), []).append(path)
    known: dict[int, str] = {}
    while at < level and _is_told(keys.get(at, ()), at) and not _wants(include.get(at, ()), at):
        known[at] = keys[at][0][1]
        at += 1
    yield from _below(archive, at, level, keys, include, known, {})


def _place(path: Path, top: int, level: int) -> int:
    """The level at which an attribute is asked for."""
    return min(max(level_of_path(path), top), level)


def _is_told(keys: Sequence[Pair], level: int) -> bool:
    """Whether the keys of a level are one value of its unique key, so that there is nothing to be found
    there."""
    if len(keys) != 1:
        return False
    path, text = keys[0]
    return path == (UNIQUE_KEYS[level],) and bool(text) and not any(sign in text for sign in _WILD)


def _wants(include: Iterable[Path], level: int) -> bool:
    return any(path != (UNIQUE_KEYS[level],) for path in include)


def _told(keys: Iterable[Pair], level: int) -> list[Pair]:
    """Keys as a level has them: of studies it is their modalities that are asked for."""
    if level != STUDY:
        return list(keys)
    return [((_MODALITIES_IN_STUDY,) if path == (_MODALITY,) else path, text) for path, text in keys]


def _below(
    archive: Archive,
    at: int,
    level: int,
    keys: dict[int, list[Pair]],
    include: dict[int, list[Path]],
    known: dict[int, str],
    above: Document,
) -> Iterator[Document]:
    parents = [((UNIQUE_KEYS[upper],), uid) for upper, uid in known.items()]
    own = [(path, text) for path, text in keys.get(at, ()) if not (path == (UNIQUE_KEYS[at],) and not text)]
    found = archive.ask(at, [*parents, *_told(own, at)], include.get(at, ()))
    if at == level:
        for row in found:
            yield {**above, **_named(known), **row}
        return
    for row in list(found):  # one question at a time
        uid = text_of(row.get(key_of(UNIQUE_KEYS[at])))
        if not uid and at != PATIENT:
            continue
        yield from _below(archive, at + 1, level, keys, include, {**known, at: uid}, {**above, **row})


def _named(known: dict[int, str]) -> Document:
    """The unique keys that were given, which an answer below may leave out."""
    return {
        key_of(UNIQUE_KEYS[level]): {"vr": dictionary.vr_of(UNIQUE_KEYS[level]), "Value": [uid]}
        for level, uid in known.items()
    }


# --- What to fetch -------------------------------------------------------------------


class Series(NamedTuple):
    """A series to fetch, or some of its instances."""

    patient: str  # ID, or name
    study: str
    series: str
    instances: tuple[tuple[str, str], ...]  # UID and SOP class of each
    is_whole: bool  # all of its instances


def series_of(archive: Archive, pairs: Sequence[tuple[str, str]]) -> Iterator[Series]:
    """The series, with their instances, that keys ask for: all of a patient, of a study, or some.

    Raises:
        BadQuery: a key that makes no sense, or none at all.
    """
    keys = parse_pairs(pairs)
    if not any(text.strip("* ") for _, text in keys):
        raise BadQuery("say what to fetch: KEY=VALUE")
    upper = [(path, text) for path, text in keys if level_of_path(path) < INSTANCE]
    own = [(path, text) for path, text in keys if level_of_path(path) == INSTANCE]
    shown: list[Path] = [(0x00100020,), (0x00100010,), (0x0020000D,), (0x0020000E,)]
    instances: list[Path] = [(0x00080018,), (0x00080016,)]
    for row in list(rows(archive, Question(SERIES, upper, shown))):
        study, series = (text_of(row.get(name)) for name in ("0020000D", "0020000E"))
        patient = text_of(row.get("00100020")) or text_of(row.get("00100010"))
        parents: list[Pair] = [((0x0020000D,), study), ((0x0020000E,), series)]
        if archive.top == PATIENT:
            parents.insert(0, ((0x00100020,), text_of(row.get("00100020"))))
        found = archive.ask(INSTANCE, [*parents, *own], instances)
        named = [(text_of(one.get("00080018")), text_of(one.get("00080016"))) for one in found]
        yield Series(patient, study, series, tuple(filter(lambda pair: pair[0], named)), not own)


def unique_values(keys: Sequence[Pair]) -> dict[int, list[str]] | None:
    """The unique keys by level, if these alone are asked for, of studies and of each level on the way to
    the last, and one value of each but the last: then nothing is to be found out. Else None."""
    level_of = {tag: level for level, tag in UNIQUE_KEYS.items()}
    found: dict[int, list[str]] = {}
    for path, text in keys:
        level = level_of.get(path[0]) if len(path) == 1 and isinstance(path[0], int) else None
        values = text.replace(",", "\\").split("\\")
        if (
            level is None
            or level == PATIENT
            or not all(values)
            or "*" in text
            or "?" in text
            or level in found
        ):
            return None
        found[level] = values
    if sorted(found) != list(range(STUDY, STUDY + len(found))) or not found:
        return None
    last = max(found)
    return found if all(len(values) == 1 for level, values in found.items() if level != last) else None

"""The Query/Retrieve information models: which SOP class finds, moves and gets by which, and what an
identifier says by it. Pure.

PS3.4 C.6, SOP Class Definitions; C.5, extended negotiation.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from hilum.dicom.json import text_of
from hilum.dimse.identifier import Document
from hilum.errors import BadQuery

_ROOT = "1.2.840.10008.5.1.4.1.2."
QUERY_LEVEL = "00080052"
CHARACTER_SET = "00080005"
TIMEZONE = "00080201"
LEVELS = {"PATIENT": "patients", "STUDY": "studies", "SERIES": "series", "IMAGE": "instances"}
UNIQUE_KEYS = {"PATIENT": "00100020", "STUDY": "0020000D", "SERIES": "0020000E", "IMAGE": "00080018"}


class Model(NamedTuple):
    """One information model."""

    number: int  # in its SOP class UIDs
    levels: tuple[str, ...]  # from the top

    @property
    def patient_root(self) -> bool:
        return self.levels[0] == "PATIENT"


_MODELS = (
    Model(1, ("PATIENT", "STUDY", "SERIES", "IMAGE")),
    Model(2, ("STUDY", "SERIES", "IMAGE")),
    Model(3, ("PATIENT", "STUDY")),  # Patient/Study Only, retired
)
FIND, MOVE, GET = ({f"{_ROOT}{model.number}.{verb}": model for model in _MODELS} for verb in (1, 2, 3))


class Agreed(NamedTuple):
    """What extended negotiation has come to: PS3.4 C.5.1.1, C.5.2.1 and C.5.3.1, SOP Class Extended
    Negotiation."""

    relational: bool = False
    combined: bool = False  # dates and times are matched together
    fuzzy: bool = False
    timezone: bool = False  # of the query is taken account of


def agreed(application_information: bytes) -> Agreed:
    flags = [byte == 1 for byte in application_information[:4]]
    return Agreed(*flags)


def answer_find(asked: bytes) -> bytes:
    """We do what the first four bytes ask for; what is behind (enhanced multi-frame conversion) we do not."""
    return bytes(1 if index < 4 and byte == 1 else 0 for index, byte in enumerate(asked))


def answer_retrieve(asked: bytes) -> bytes:
    """Relational retrieval, and no conversion."""
    return bytes(1 if index < 1 and byte == 1 else 0 for index, byte in enumerate(asked))


def level_of(document: Document, model: Model) -> str:
    """The level that an identifier asks at.

    Raises:
        BadQuery: it names none, or one that the model lacks.
    """
    level = text_of(document.get(QUERY_LEVEL)).strip().upper()
    if level not in model.levels:
        raise BadQuery(f"{level or 'no'} Query/Retrieve Level; this model has {', '.join(model.levels)}")
    return level


def keys_of(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys by name, with their values; those in items by their path. What is only to be returned has no
    value."""
    for name, attribute in document.items():
        if name in (CHARACTER_SET, QUERY_LEVEL) or name.endswith("0000"):
            continue
        if attribute.get("vr") == "UN":  # a private key: what its VR is, the stored elements tell
            raw = base64.b64decode(attribute.get("InlineBinary", ""))
            yield name, raw.decode("utf-8", "replace").strip(" \0")
            continue
        if attribute.get("vr") != "SQ":
            yield name, text_of(attribute)
            continue
        for item in attribute.get("Value", ()):
            for inner, value in keys_of(item or {}):
                yield f"{name}.{inner}", value

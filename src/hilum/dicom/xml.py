"""Takes a data set as DICOM JSON; gives it as a Native DICOM Model document, and back. Reads no file,
resolves no entity, and goes to no network.

PS3.19 A.1, Native DICOM Model, which PS3.18 names application/dicom+xml. Both say the same, but for what
XML 1.0 can't hold (most control characters: they become U+FFFD) and what its tags don't tell: the block of a
private element, which stands as gggg00ee beside the name of its creator.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from hilum.dicom.dictionary import keyword_of
from hilum.errors import BadDicom

if TYPE_CHECKING:
    from lxml import etree

NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"

Document = dict[str, dict[str, Any]]

_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")  # PS3.5 6.2.1.1
_WHOLE_VRS = frozenset(("IS", "SL", "SS", "SV", "UL", "US", "UV"))
_DECIMAL_VRS = frozenset(("DS", "FD", "FL"))
_TAG = re.compile("[0-9A-Fa-f]{8}")
_VR = re.compile("[A-Z]{2}")
_GAP_MAX = 256  # values that are left out between two that are there
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SPECIAL = re.compile('[&<>"\r]')
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"}


# --- Out ---------------------------------------------------------------------------


def to_xml(document: Document) -> bytes:
    """Return the data set as a Native DICOM Model document, UTF-8."""
    parts = [
        '<?xml version="1.0" encoding="UTF-8"?>\n',
        f'<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">',
    ]
    _put_data_set(parts, document)
    parts.append("</NativeDicomModel>\n")
    return "".join(parts).encode("utf-8")


def _put_data_set(parts: list[str], document: Document) -> None:
    told: set[tuple[str, str]] = set()
    for key, attribute in document.items():
        tag, vr = key, str(attribute["vr"])
        owner = ""
        if int(key, 16) >> 16 & 1 and int(key, 16) & 0xFFFF >= 0x1000:
            creator = _creator(document, key)
            short = f"{key[:4]}00{key[6:]}"
            if (
                creator and (short, creator) not in told
            ):  # two blocks of one creator: the second keeps its own
                told.add((short, creator))
                tag, owner = short, f' privateCreator="{_escaped(creator)}"'
        keyword = keyword_of(int(key, 16))
        name = f' keyword="{keyword}"' if keyword else ""
        parts.append(f'<DicomAttribute tag="{tag}" vr="{vr}"{name}{owner}>')
        if "BulkDataURI" in attribute:
            parts.append(f'<BulkData uri="{_escaped(attribute["BulkDataURI"])}"/>')
        elif "InlineBinary" in attribute:
            parts.append(f"<InlineBinary>{attribute['InlineBinary']}</InlineBinary>")
        else:
            _put_values(parts, vr, attribute.get("Value", ()))
        parts.append("</DicomAttribute>")


def _creator(document: Document, key: str) -> str:
    """The Private Creator that reserves the block of a private element, "" where none does."""
    values = document.get(f"{key[:4]}00{key[4:6]}", {}).get("Value")
    return str(values[0]) if values and values[0] is not None else ""


def _put_values(parts: list[str], vr: str, values: list[Any]) -> None:
    for number, value in enumerate(values, 1):
        if vr == "SQ":
            parts.append(f'<Item number="{number}">')
            _put_data_set(parts, value or {})
            parts.append("</Item>")
        elif value is None:
            parts.append(f'<Value number="{number}"/>')
        elif vr == "PN":
            parts.append(f'<PersonName number="{number}">')
            _put_name(parts, value)
            parts.append("</PersonName>")
        else:
            parts.append(f'<Value number="{number}">{_escaped(str(value))}</Value>')


def _put_name(parts: list[str], groups: dict[str, str]) -> None:
    for group in _GROUPS:
        if not groups.get(group):
            continue
        parts.append(f"<{group}>")
        # What follows a fifth caret is no component; it stays with the last, so that nothing is lost.
        for component, text in zip(_COMPONENTS, groups[group].split("^", 4), strict=False):
            if text:
                parts.append(f"<{component}>{_escaped(text)}</{component}>")
        parts.append(f"</{group}>")


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda match: _ESCAPES[match[0]], _UNWRITABLE.sub("\ufffd", text))


# --- In ----------------------------------------------------------------------------


def from_xml(data: bytes) -> Document:
    """Return the data set of a Native DICOM Model document, with or without its namespace.

    The bounds of the parser hold: 256 levels, 10 MB in a text. That of the whole is the caller's to set.

    Raises:
        BadDicom: it is not well-formed, declares a document type, or is no such document.
    """
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        huge_tree=False,
        load_dtd=False,
        dtd_validation=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as failure:
        raise BadDicom(f"the XML can't be read: {failure}") from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise BadDicom("the XML declares a document type, which a Native DICOM Model does not have")
    if _name(root) != "NativeDicomModel":
        raise BadDicom(f"the XML begins with {_name(root)[:80]!r} and not with NativeDicomModel")
    return _data_set(root)


def _name(element: etree._Element) -> str:
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _data_set(parent: etree._Element) -> Document:
    document: Document = {}
    private: list[tuple[str, str, dict[str, Any]]] = []
    for element in parent:
        if _name(element) != "DicomAttribute":
            raise BadDicom(f"{_name(element)[:80]!r} stands where a DicomAttribute must stand")
        tag, vr = element.get("tag", "").upper(), element.get("vr", "")
        if not _TAG.fullmatch(tag) or not _VR.fullmatch(vr):
            raise BadDicom(f"a DicomAttribute has tag {tag[:80]!r} and VR {vr[:80]!r}")
        attribute = _attribute(element, vr, int(tag, 16))
        creator = element.get("privateCreator", "").rstrip()
        if creator and tag[4:6] == "00" and int(tag[:4], 16) & 1:
            private.append((tag, creator, attribute))
        else:
            document[tag] = attribute
    for tag, creator, attribute in private:
        document[f"{tag[:4]}{_block(document, tag[:4], creator):02X}{tag[6:]}"] = attribute
    return dict(sorted(document.items()))


def _block(document: Document, group: str, creator: str) -> int:
    """The block that this creator has in a group, PS3.5 7.8.1; the first empty one if it has none."""
    blocks = range(0x10, 0x100)
    for block in blocks:
        if document.get(f"{group}00{block:02X}", {}).get("Value") == [creator]:
            return block
    taken = {key[4:6] for key in document if key.startswith(group)}
    for block in blocks:
        if f"{block:02X}" not in taken and f"{group}00{block:02X}" not in document:
            document[f"{group}00{block:02X}"] = {"vr": "LO", "Value": [creator]}
            return block
    raise BadDicom(f"group {group} has no room for what {creator[:64]!r} owns", tag=int(group, 16) << 16)


def _attribute(element: etree._Element, vr: str, tag: int) -> dict[str, Any]:
    values: list[Any] = []
    for child in element:
        name = _name(child)
        if name == "BulkData":
            uri = child.get("uri") or child.get("uuid") or child.get("URI") or child.get("UUID")
            if not uri:
                raise BadDicom("a BulkData has neither uri nor uuid", tag=tag)
            return {"vr": vr, "BulkDataURI": uri}
        if name == "InlineBinary":
            return {"vr": vr, "InlineBinary": "".join("".join(child.itertext()).split())}
        place = _number(child, tag, len(values) + 1)
        if name == "Item" and vr == "SQ":
            value: Any = _data_set(child)
        elif name == "PersonName" and vr == "PN":
            value = _read_name(child)
        elif name == "Value" and vr not in ("SQ", "PN"):
            value = _value(vr, "".join(child.itertext()))
        else:
            raise BadDicom(f"{name[:80]!r} can't stand in an attribute of VR {vr}", tag=tag)
        values.extend([None] * (place - 1 - len(values)))
        values[place - 1 : place] = [value]
    return {"vr": vr, "Value": values} if values and values != [None] else {"vr": vr}


def _number(element: etree._Element, tag: int, default: int) -> int:
    """Which value or item of its attribute this one is, from 1."""
    text = element.get("number", str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or not 0 < int(text) <= default + _GAP_MAX:
        raise BadDicom(f"{text[:80]!r} is no number of a value", tag=tag)
    return int(text)


def _read_name(element: etree._Element) -> dict[str, str] | None:
    groups = {}
    for group in _GROUPS:
        found = next((child for child in element if _name(child) == group), None)
        if found is not None:
            parts = {_name(child): "".join(child.itertext()) for child in found}
            text = "^".join(parts.get(component, "") for component in _COMPONENTS).rstrip("^")
            if text:
                groups[group] = text
    return groups or None


def _value(vr: str, text: str) -> str | int | float | None:
    """A value as the DICOM JSON Model has it, PS3.18 F.2.3: what is no number stays text."""
    if text == "":
        return None
    if vr in _WHOLE_VRS or vr in _DECIMAL_VRS:
        for kind in (int, float):
            try:
                number: int | float = kind(text)
            except ValueError:
                continue
            return number if math.isfinite(number) and "_" not in text else text
    return text

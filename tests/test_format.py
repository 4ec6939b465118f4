"""Holds docs/format.md against the code: each struct's fields and offsets, each constant, table and list; and
the bytes of a small store against fixed hashes.

When bytes on disk change on purpose: change the page and the version that it names, then run

    HILUM_UPDATE_GOLDEN=1 python -m pytest tests/test_format.py -k golden

which writes the new hashes into this file, and commit all of it together.
"""

from __future__ import annotations

import importlib
import os
import re
import struct
import time
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import hilum
from hilum import _fastparse
from hilum.engine import index, ledger, packs, prepare, record, verify, writer
from hilum.engine.writer import Policy, Result

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "format.md"
PARSER = ROOT / "src" / "_fastparse.pyx"


class Table(NamedTuple):
    """One table of the page."""

    before: str  # the paragraph that leads to it
    columns: list[str]
    rows: list[list[str]]
    line: int


def _tables() -> list[Table]:
    found, paragraph, last = [], "", ""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("|"):
            cells = []
            begin = at
            while at < len(lines) and lines[at].startswith("|"):
                cells.append([cell.strip() for cell in lines[at].strip("|").split("|")])
                at += 1
            found.append(Table(last, cells[0], cells[2:], begin + 1))
            continue
        paragraph = f"{paragraph} {line}".strip() if line else ""
        last = paragraph or last
        at += 1
    return found


TABLES = _tables()
STRUCT_TABLES = [table for table in TABLES if table.columns[0] == "offset"]
CONSTANT_TABLES = [table for table in TABLES if table.columns[0] == "constant"]

_STRUCT = re.compile(r"(`[\w.]+`(?: \+ `[\w.]+`)*), (\d+) bytes")
_CODES = {
    "u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "i64": "<q", "u32be": ">I", "u64be": ">Q",
}  # fmt: skip


def _named(name: str) -> Any:
    """What `module.NAME` is: in the compiled parser, where Python does not see it, out of its source."""
    module, _, attribute = name.partition(".")
    if module == "_fastparse":
        if hasattr(_fastparse, attribute):
            return getattr(_fastparse, attribute)
        match = re.search(rf"^    {attribute} = (\w+) ", PARSER.read_text(encoding="utf-8"), re.MULTILINE)
        assert match is not None, f"{name} is not in {PARSER.name}"
        return int(match[1], 0)
    value = importlib.import_module(f"hilum.engine.{module}")
    for part in attribute.split("."):
        value = getattr(value, part)
    return value


def _expanded(fields: struct.Struct) -> list[tuple[str, int]]:
    """(type, size) of each field of a struct: "<2s3xI" is a string of 2, a gap of 3 and a number of 4."""
    order, rest = fields.format[0], fields.format[1:]
    assert order in "<>", f"{fields.format} has no byte order of its own"
    found = []
    for number, code in re.findall(r"(\d*)([a-zA-Z])", rest):
        if code in "sx":
            found.append((code, int(number or 1)))
        else:
            found += [(order + code, struct.calcsize(order + code))] * int(number or 1)
    return found


def _documented(table: Table) -> list[tuple[str, int]]:
    """The same out of a table of the page."""
    found = []
    for _, size, kind, _ in table.rows:
        code = {"bytes": "s", "zero": "x"}.get(kind) or _CODES[kind]
        found.append((code, int(size)))
    return found


def _normal(fields: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """One byte has no byte order."""
    return [(code[-1] if size == 1 and code not in "sx" else code, size) for code, size in fields]


def _title(table: Table) -> str:
    match = _STRUCT.search(table.before)
    return match[1].replace("`", "") if match else f"line {table.line}"


# --- The page against the code -------------------------------------------------


@pytest.mark.parametrize("table", STRUCT_TABLES, ids=_title)
def test_a_struct_has_the_fields_that_the_page_gives_it(table):
    match = _STRUCT.search(table.before)
    assert match, f"the table in line {table.line} does not say which struct it is"
    structs = [_named(name.strip("` ")) for name in match[1].split("+")]

    assert _normal(_documented(table)) == _normal([field for one in structs for field in _expanded(one)])
    assert int(match[2]) == sum(one.size for one in structs)


@pytest.mark.parametrize("table", STRUCT_TABLES, ids=_title)
def test_each_field_begins_where_the_one_before_it_ends(table):
    at = 0
    for offset, size, _, field in table.rows:
        assert int(offset) == at, f"{field!r} in line {table.line}"
        at += int(size)


def test_every_struct_of_the_engine_is_on_the_page():
    known = {name.strip() for table in STRUCT_TABLES for name in _title(table).split("+")}
    here = set()
    for path in sorted((ROOT / "src" / "hilum" / "engine").glob("*.py")):
        for name in re.findall(r"^(\w+) = Struct\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            here.add(f"{path.stem}.{name}")

    assert here - known == {"index.U32", "index.U64"}  # plain numbers: u32be and u64be
    assert known - here == set()


def _constants() -> Iterator[tuple[str, int]]:
    for table in CONSTANT_TABLES:
        for name, value, *_ in table.rows:
            yield name.strip("`"), int(value.replace(",", ""), 0)


@pytest.mark.parametrize(("name", "value"), list(_constants()))
def test_a_constant_has_the_value_that_the_page_gives_it(name, value):
    assert _named(name) == value


def test_the_page_has_every_kind_flag_and_version():
    known = {name for name, _ in _constants()}
    text = {
        module: (ROOT / "src" / "hilum" / "engine" / f"{module}.py").read_text(encoding="utf-8")
        for module in ("packs", "record", "folder", "index", "ledger", "frametable")
    }
    kinds = re.search(r"# Kinds of record\.\n(.+) = ", text["packs"])
    flags = re.search(r"# Flags of a head and of an instance\.\n((?:\w+ = \d+.*\n)+)", text["record"])
    changes = re.search(r"^(CHANGE_\w+(?:, CHANGE_\w+)*) = ", text["ledger"], re.MULTILINE)
    assert kinds is not None
    assert flags is not None
    assert changes is not None
    wanted = {f"packs.{name}" for name in kinds[1].split(", ")}
    wanted |= {f"record.{name}" for name in re.findall(r"^(\w+) =", flags[1], re.MULTILINE)}
    wanted |= {f"ledger.{name}" for name in changes[1].split(", ")}
    wanted |= {f"index.{name}" for name in re.findall(r"^(PACK_\w+) = \d", text["index"], re.MULTILINE)}
    wanted |= {f"writer.Result.{result.name}" for result in Result}
    wanted |= {
        f"{module}.{name}"
        for module, source in text.items()
        for name in re.findall(r"^(\w+_VERSION) =", source, re.MULTILINE)
    }

    assert wanted - known == set()


def test_the_page_has_the_tables_of_the_index():
    (table,) = [table for table in TABLES if table.columns[0] == "table"]

    assert [row[0].strip("`") for row in table.rows] == [name.decode() for name in index.TABLES]


def test_the_page_has_the_entries_in_their_order():
    (table,) = [table for table in TABLES if table.columns[0] == "entry"]
    levels = {0: "all", 1: "patient", 2: "study", 3: "series", 4: "instance"}
    wanted = [
        [str(number), f"({tag >> 16:04X},{tag & 0xFFFF:04X})", vr, levels[level] + ", nested" * nested]
        for number, (tag, vr, level, nested) in enumerate(_fastparse.wanted())
    ]

    assert [row[:4] for row in table.rows] == wanted


def test_the_page_has_the_transfer_syntaxes_in_their_order():
    (table,) = [table for table in TABLES if table.columns[0] == "code"]

    wanted = [[str(code), uid.decode() or "none"] for code, uid in enumerate(record._SYNTAX_CODES)]
    assert table.rows == wanted


def test_the_longest_keys_keep_to_the_limit():
    text, uid = _named("keys._TEXT_MAX"), _named("header.UID_MAX")
    assert text == 400  # as the page says
    moment = len("20240131103000.000000")

    assert 1 + text + 1 + 64 <= index.KEY_MAX  # patient_ids
    assert 1 + text + 1 + 4 <= index.KEY_MAX  # keys
    assert 1 + moment + 1 + uid <= index.KEY_MAX
    assert uid + 1 + 16 <= index.KEY_MAX  # conflicts
    assert index.KEY_MAX >= 12 + 255  # journal: the longest name of a file


# --- The code against fixed bytes -----------------------------------------------

# Written by the command above. File → (size, SHA-256), for the index table → (entries, SHA-256).
GOLDEN: dict[str, tuple[int, str]] = {
    "packs/00000001.bulk": (4480, "aac5f49f97fc3a656e9c3f932dbfab25709a75e30350d7b5b68147cb4dbfee4a"),
    "packs/00000002.head": (4728, "3db00851a256163124b53e658c0f6f6ece56458c7eaf49d39b5ca7ecf1c07b76"),
    "packs/00000003.bulk": (602536, "69905ed9123b627b55f206f7c7a601022834f9fe29d2daa81b321bdcb7a78728"),
    "packs/00000004.file": (5128, "4cbef2953f31e7ed7f0a889147fae500d3aff3c36c23a2cb754de02b60fb3b91"),
    "packs/00000005.head": (952, "467b9732caaad24d5f1d4b54803903ffa51e21e4d7396b5f0d9b898b6973f7ac"),
    "packs/00000006.bulk": (2176, "728247fed400f090e86bc0cc553b45fad4e9f25fe725046e757ecf67a05d1b47"),
    "index/meta": (8, "dc148576e5bcd0604265e46335477c0250fca790387eb4369ce844d15097ea1f"),
    "index/packs": (6, "12ff3f2db38541f12f20880ecdcfea0cd576e7b03744badfc1a250be9452c251"),
    "index/patients": (1, "82b57746808d5fff52d01ec9ff5cfdcf3bdb5b81ad57bfaf0f1dd8603dc22d99"),
    "index/patient_ids": (1, "d43ced29b06a375d5a59f95ce068cb02b6465d2158be4882940cc7b4f42ffba4"),
    "index/patient_studies": (1, "4b5cc63cc86f7856df6f085ae2d08bed6e00d49e9c876bad93fd26afec2ffeb5"),
    "index/studies": (1, "792f76fa802d74f45bf3e119ee7721408a602937e87b7691e047d7294f2486bf"),
    "index/study_uids": (1, "6077711d96eb06c41d21ca812cf9efb2b16f9713dfcc52c7cec505c3f742a9d0"),
    "index/series": (2, "095b1e649da4721e6e3c1488cb2e11faf4e73735801f5e8b14d4ac553d2aa4e4"),
    "index/series_uids": (2, "9336bc743f1e091839c04dac6260b3f7f62985a88259c1ec228e8680a4070200"),
    "index/instances": (5, "71379f111b62b7aa5577d4402a3ae1675c617a14e3675d07904f28f129335a18"),
    "index/sop_uids": (5, "f6a1945a73b09b193c04bb0be4e01efe933e5a27f339c4617dc888c2a9b4db8e"),
    "index/revisions": (1, "32b64b3d713ec3ec39d7c9010bcb2cadae136e57b23963b1a4f9359e53f30fe1"),
    "index/places": (5, "88888760310df86ffd913254f01d315b8966fdce1c18ea2d9f3370cbf7990bf0"),
    "index/keys": (4, "446183ba5d38d4a5a87ff7ad10c1f32a71c5a6e942b1ae7ca90e7f6e49c9cf33"),
    "index/columns": (3, "0658f377a133d5d26c0d593c93396aa55b465716dc4a3f67c2589feac88226e0"),
    "index/changes": (8, "a16df89351af365069f400ffd0cb535169282f3d3165237a0d68fc082ff1e9f7"),
    "index/conflicts": (1, "c6123f110c69c7baa5722825191ad733a6358ced754f68890db4bf13963a1a76"),
    "index/bad": (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    "index/journal": (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
}  # end of GOLDEN


def _element(tag: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr in (b"UI", b"OB") else b" ") * (len(value) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    long = vr in (b"OB", b"OW", b"SQ", b"UN")
    return head + (struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value))) + value


def _object(
    number: int, pixels: bytes, *, syntax: bytes = b"1.2.840.10008.1.2.1", name: bytes = b"A^B"
) -> bytes:
    """A file with preamble: number tells objects apart, pixels is a whole element."""
    meta = _element(0x00020010, b"UI", syntax)
    us = struct.Struct("<H").pack
    return b"".join(
        [
            bytes(128) + b"DICM",
            _element(0x00020000, b"UL", struct.pack("<I", len(meta))),
            meta,
            _element(0x00080005, b"CS", b"ISO_IR 100"),
            _element(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.7"),
            _element(0x00080018, b"UI", b"2.25.1.%d" % number),
            _element(0x00080020, b"DA", b"20240131"),
            _element(0x00080030, b"TM", b"103000"),
            _element(0x00080060, b"CS", b"OT"),
            _element(0x00081030, b"LO", b"Caf\xe9"),
            _element(0x00100010, b"PN", name),
            _element(0x00100020, b"LO", b"P1"),
            _element(0x0020000D, b"UI", b"2.25.3"),
            _element(0x0020000E, b"UI", b"2.25.2.%d" % (number % 2)),
            _element(0x00200013, b"IS", b"%d" % number),
            _element(0x00280002, b"US", us(1)),
            _element(0x00280004, b"CS", b"MONOCHROME2"),
            _element(0x00280008, b"IS", b"2"),
            _element(0x00280010, b"US", us(32)),
            _element(0x00280011, b"US", us(32)),
            _element(0x00280100, b"US", us(8)),
            _element(0x00280101, b"US", us(8)),
            _element(0x00280103, b"US", us(0)),
            pixels,
        ]
    )


def _native(fill: int, length: int = 2048) -> bytes:
    return _element(0x7FE00010, b"OB", bytes((fill + at) & 0xFF for at in range(length)))


def _encapsulated() -> bytes:
    """Two frames: one of one fragment, one of two; a Basic Offset Table."""
    fragments = [b"\xff\xd8" + bytes((n,)) * 700 + b"\xff\xd9" for n in range(3)]
    items = [struct.pack("<HHII", 0xFFFE, 0xE000, 8, 0) + struct.pack("<I", 8 + len(fragments[0]))]
    items += [struct.pack("<HHI", 0xFFFE, 0xE000, len(one)) + one for one in fragments]
    head = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    return head + b"".join(items) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


@pytest.fixture
def frozen(monkeypatch):
    """No clock and no chance, however often the engine asks: the same acts give the same bytes."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    monkeypatch.setattr(
        os, "urandom", lambda length: (sha256(b"chance").digest() * (length // 32 + 1))[:length]
    )


def _make_store(path: Path, tmp_path: Path) -> None:
    """Every kind of record and of pack, a sealed pack of each kind, and a row in every table but two."""
    with hilum.open(path, create=True) as store:
        assert store.ingest(_object(1, _native(1)), source="first").result == Result.STORED
        assert store.ingest(_object(1, _native(1))).result == Result.DUPLICATE
        assert store.ingest(_object(2, _native(1))).result == Result.STORED  # the same pixels
        with pytest.raises(hilum.errors.Conflict):
            store.ingest(_object(1, _native(2)))
        assert store.ingest(_object(2, _native(2)), policy=Policy.REPLACE).result == Result.REPLACED
        jpeg = _object(3, _encapsulated(), syntax=b"1.2.840.10008.1.2.4.50")
        assert store.ingest(jpeg).result == Result.STORED
        assert store.ingest(_object(4, _native(4, 512), name=b"C^D")).result == Result.STORED  # no blob
        assert store.ingest(_object(5, _native(5, 600_000))).result == Result.STORED  # three blocks
        large = tmp_path / "large.dcm"
        large.write_bytes(_object(6, _native(6, 5000)))
        assert store.ingest(large, source="large").result == Result.STORED  # a file pack
        assert store.delete("instances", {"SOPInstanceUID": "2.25.1.4"}) == 1
        assert store.writer.purge([(ledger.PURGED_CONFLICTS, b"2.25.1.4")]) == 0
    _spoil(path, bytes((1 + at) & 0xFF for at in range(2048)))
    with hilum.open(path) as store:
        found: list[verify.Problem] = []
        verify.verify(store, on_problem=found.append)
        assert found
        assert store.ingest(_object(1, _native(1))).result == Result.HEALED
    with hilum.open(path) as store:
        assert store.read("2.25.1.1") == _object(1, _native(1))
        assert store.read("2.25.1.6") == large.read_bytes()


def _spoil(path: Path, value: bytes) -> None:
    """Flip a bit in the blob with this value."""
    for pack in sorted((path / "packs").glob("*.bulk")):
        data = bytearray(pack.read_bytes())
        if (at := data.find(value)) >= 0:
            data[at + 100] ^= 1
            pack.write_bytes(data)
            return
    raise AssertionError("no such blob")


def _kinds_in(path: Path) -> set[int]:
    found = set()
    for file in packs.list_packs(str(path / "packs")):
        fd = os.open(file.path, os.O_RDONLY)
        try:
            info = packs.read_info(fd, file.path)
            for row in packs.records(fd, info, 64, os.fstat(fd).st_size, whole=False):
                found.add(row.kind)
        finally:
            os.close(fd)
    return found


def _hashes(path: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for file in sorted((path / "packs").iterdir()):
        data = file.read_bytes()
        found[f"packs/{file.name}"] = len(data), sha256(data).hexdigest()
    with hilum.open(path, read_only=True) as store, store.index.read() as snapshot:
        for table in index.TABLES:
            rows = list(snapshot.scan(table))
            text = b"".join(struct.pack("<II", len(key), len(value)) + key + value for key, value in rows)
            found[f"index/{table.decode()}"] = len(rows), sha256(text).hexdigest()
    return found


def test_golden_bytes_of_a_small_store(tmp_path, monkeypatch, frozen):
    monkeypatch.setattr(writer, "PACK_MAX", 4000)
    monkeypatch.setattr(prepare, "IN_MEMORY_MAX", 4000)
    _make_store(tmp_path / "store", tmp_path)
    found = _hashes(tmp_path / "store")

    assert _kinds_in(tmp_path / "store") == {
        packs.STORED, packs.DELETED, packs.CONFLICT, packs.BLOB, packs.BAD_BLOB, packs.PURGED, packs.FOOTER
    }  # fmt: skip
    empty = {name for name, (size, _) in found.items() if name.startswith("index/") and not size}
    assert empty == {"index/bad", "index/journal"}
    if os.environ.get("HILUM_UPDATE_GOLDEN") == "1":
        _write_golden(found)
    else:
        assert found == GOLDEN, "bytes on disk have changed; the top of this file says what to do"


def _write_golden(found: dict[str, tuple[int, str]]) -> None:
    rows = "".join(f'    "{name}": ({size}, "{digest}"),\n' for name, (size, digest) in found.items())
    path = Path(__file__)
    text = path.read_text(encoding="utf-8")
    begin, end = text.index("GOLDEN: dict"), text.index("}  # end of GOLDEN")
    head = text[begin : text.index("\n", begin) + 1]
    path.write_text(text[:begin] + head + rows + text[end:], encoding="utf-8")


def test_records_lie_back_to_back_at_multiples_of_eight(tmp_path):
    with hilum.open(tmp_path / "store", create=True) as store:
        for number in range(1, 6):
            store.ingest(_object(number, _native(number, 2000 + 2 * number)))
    for file in packs.list_packs(str(tmp_path / "store" / "packs")):
        fd = os.open(file.path, os.O_RDONLY)
        try:
            info = packs.read_info(fd, file.path)
            rows = list(packs.records(fd, info, 64, os.fstat(fd).st_size, whole=True))
            end = os.fstat(fd).st_size
        finally:
            os.close(fd)
        assert len(rows) == 5
        begins = [row.offset - 64 for row in rows]
        assert begins[0] == 64
        assert all(at % 8 == 0 for at in begins)
        for row, after in pairwise(rows):
            assert row.offset + row.length + packs.padding(row.length) == after.offset - 64
        assert rows[-1].offset + rows[-1].length + packs.padding(rows[-1].length) == end

"""Takes counts; gives the made data of every benchmark. The same on every run: nothing here looks at a clock.

    header_files(1000)                  files in memory with a CT header of 260 elements, 6,300 bytes
    write_tree(folder, 20_000, ...)     a tree study/series/file on disk
    small_instances(0, 1000)            2 KiB instances in memory, for the batch API
    studies(0, 1000)                    the same, one instance a study
    ct_series(0, 50)                    the files of one CT series in memory
    ct_picture(0)                       pixels that look like a slice, for codecs
    write_native(...), write_encapsulated(...)      objects of very many frames

Pixels are noise of their own for each file, so that nothing can be stored once for two of them or compressed.
UIDs look like those of a scanner: random for a study and a series, counted inside a series.
"""

from __future__ import annotations

import datetime
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from struct import pack
from typing import NamedTuple

SEED = 7

# A CT slice as most archives hold it.
ELEMENT_COUNT = 260  # of its data set without Pixel Data, those in sequences counted
HEAD_BYTES = 6_300  # from the file's first byte to the tag of Pixel Data
SMALL_PIXELS = 128 * 128 * 2  # with the head: a file of 39 KB
LARGE_PIXELS = 512 * 506 * 2  # with the head: a file of 525 KB
FULL_PIXELS = 512 * 512 * 2  # a frame of 525 KB
FEW_FILES = 300  # of a tree, where a benchmark runs as a test
SERIES_INSTANCES = 100
STUDY_SERIES = 2
STUDY_INSTANCES = SERIES_INSTANCES * STUDY_SERIES

# The smallest objects that still have a blob of their own.
TINY_BYTES = 2_048
TINY_PIXELS = 1_024

PICTURE_SIDE = 512  # of ct_picture()

EXPLICIT_LE = "1.2.840.10008.1.2.1"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

_ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's, which anybody may use for made objects
_LONG_VRS = {"OB", "OW", "SQ", "UN", "UT"}
_FIRST_DAY = datetime.date(2015, 1, 1)
_MOMENTS = 10 * 365 * 86_400  # seconds over which the studies are spread
_STEP = 98_765_431  # has no divisor in common with _MOMENTS: no two studies have the same moment
_FAMILIES_WITH_SMI = ("SMITH", "SMIRNOVA", "KOSMIDER", "NESMITH", "SMITHSON")
_SMI_EVERY = 100  # one name in so many holds "smi"
_SYLLABLES = (
    "BA",
    "DOR",
    "EL",
    "FEN",
    "GAR",
    "HO",
    "IV",
    "KA",
    "LUN",
    "MER",
    "NO",
    "PET",
    "RO",
    "SAL",
    "TI",
    "VAN",
)
_GIVEN = (
    "ANNA",
    "BERND",
    "CLARA",
    "DAVID",
    "EMRE",
    "FATIMA",
    "GRETA",
    "HUGO",
    "IDA",
    "JONAS",
    "KEIKO",
    "LARS",
)
_UID_HOLDER = b"U" * 57  # a SOP Instance UID is always as long as this
_NUMBER_HOLDER = b"NNNN"  # and an Instance Number


def element(tag: int, vr: str, value: bytes | str | int = b"") -> bytes:
    """One data element, PS3.5 7.1.2 (Data Element Structure with Explicit VR); an int is US or UL."""
    if isinstance(value, int):
        value = pack("<H" if vr == "US" else "<I", value)
    raw = value.encode("latin-1") if isinstance(value, str) else value
    if len(raw) % 2:
        raw += b"\0" if vr in ("UI", "OB", "OW", "UN") else b" "
    head = pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    return head + (pack("<HI", 0, len(raw)) if vr in _LONG_VRS else pack("<H", len(raw))) + raw


def sequence(tag: int, *items: Sequence[bytes]) -> bytes:
    """A sequence of explicit length."""
    return element(tag, "SQ", b"".join(_item(b"".join(elements)) for elements in items))


def _item(content: bytes) -> bytes:
    return pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def file_meta(uid: bytes | str, sop_class: str, transfer_syntax: str) -> bytes:
    """Preamble, prefix and group 2: PS3.10 7.1, DICOM File Meta Information."""
    body = b"".join(
        (
            element(0x00020001, "OB", b"\0\1"),
            element(0x00020002, "UI", sop_class),
            element(0x00020003, "UI", uid),
            element(0x00020010, "UI", transfer_syntax),
            element(0x00020012, "UI", f"{_ROOT}1"),
            element(0x00020013, "SH", "BENCHMARK"),
        )
    )
    return b"\0" * 128 + b"DICM" + element(0x00020000, "UL", len(body)) + body


# --- Who, and when -----------------------------------------------------------------------


class Study(NamedTuple):
    """A made study; `number` counts from 0, and everything else follows from it."""

    number: int
    uid: str
    patient_id: str
    name: str
    birth_date: str
    sex: str
    date: str
    time: str
    accession: str

    def series_uid(self, series: int) -> str:
        return f"{self.uid}.{1 + series}"

    def sop_uid(self, series: int, instance: int) -> bytes:
        """Always as long as _UID_HOLDER."""
        return b"%s.%d" % (self.series_uid(series).encode(), 1_000_000_001 + instance)


def study(number: int) -> Study:
    """The study of this number. A patient has two; one name in a hundred holds "smi"."""
    rng = random.Random(f"{SEED} study {number}")
    patient = number // 2
    of_patient = random.Random(f"{SEED} patient {patient}")
    if patient % _SMI_EVERY == _SMI_EVERY // 3:
        family = of_patient.choice(_FAMILIES_WITH_SMI)
    else:
        family = "".join(of_patient.choices(_SYLLABLES, k=3))
    moment = number * _STEP % _MOMENTS
    date = _FIRST_DAY + datetime.timedelta(days=moment // 86_400)
    second = moment % 86_400
    return Study(
        number,
        f"{_ROOT}{rng.randrange(10**17, 10**18)}",
        f"PID{patient:08}",
        f"{family}^{of_patient.choice(_GIVEN)}",
        f"{of_patient.randrange(1930, 2010)}0{of_patient.randrange(1, 10)}1{of_patient.randrange(10)}",
        of_patient.choice("FM"),
        date.strftime("%Y%m%d"),
        f"{second // 3600:02}{second // 60 % 60:02}{second % 60:02}",
        f"A{number:09}",
    )


# --- The CT header ------------------------------------------------------------------------


def _ct_elements(about: Study, series: int) -> list[bytes]:
    """The standard attributes of a CT slice, in order; UID and number of the instance are held free."""
    code = (
        element(0x00080100, "SH", "36643-5"),
        element(0x00080102, "SH", "LN"),
        element(0x00080104, "LO", "Chest X-ray 2 views"),
    )
    reference = (
        element(0x00081150, "UI", CT_IMAGE),
        element(0x00081155, "UI", about.series_uid(series) + ".999999"),
    )
    return [
        element(0x00080005, "CS", "ISO_IR 100"),
        element(0x00080008, "CS", "ORIGINAL\\PRIMARY\\AXIAL"),
        element(0x00080012, "DA", about.date),
        element(0x00080013, "TM", about.time + ".412000"),
        element(0x00080016, "UI", CT_IMAGE),
        element(0x00080018, "UI", _UID_HOLDER),
        element(0x00080020, "DA", about.date),
        element(0x00080021, "DA", about.date),
        element(0x00080022, "DA", about.date),
        element(0x00080023, "DA", about.date),
        element(0x00080030, "TM", about.time),
        element(0x00080031, "TM", about.time),
        element(0x00080032, "TM", about.time + ".215000"),
        element(0x00080033, "TM", about.time + ".398000"),
        element(0x00080050, "SH", about.accession),
        element(0x00080060, "CS", "CT"),
        element(0x00080070, "LO", "MAKER OF SCANNERS"),
        element(0x00080080, "LO", "GENERAL HOSPITAL"),
        element(0x00080081, "ST", "1 Hospital Road"),
        element(0x00080090, "PN", "REFERRER^RUTH"),
        element(0x00081010, "SH", "CT01"),
        element(0x00081030, "LO", "CT THORAX WITH CONTRAST"),
        sequence(0x00081032, code),
        element(0x0008103E, "LO", f"AXIAL 5.0 B{30 + series}f"),
        element(0x00081040, "LO", "RADIOLOGY"),
        element(0x00081050, "PN", "PERFORMER^PAUL"),
        element(0x00081070, "PN", "OPERATOR^OLGA"),
        element(0x00081090, "LO", "MODEL 64"),
        sequence(0x00081110, reference),
        sequence(0x00081140, reference, reference, reference),
        element(0x00090010, "LO", "MAKER HEADER 1.0"),
        *(element(0x00091001 + n, "SH", f"H{n:05}") for n in range(24)),
        element(0x00100010, "PN", about.name),
        element(0x00100020, "LO", about.patient_id),
        element(0x00100030, "DA", about.birth_date),
        element(0x00100040, "CS", about.sex),
        element(0x00101010, "AS", "057Y"),
        element(0x00101020, "DS", "1.74"),
        element(0x00101030, "DS", "74.5"),
        element(0x00104000, "LT", "no allergies known"),
        element(0x00180010, "LO", "APPLIED"),
        element(0x00180015, "CS", "CHEST"),
        element(0x00180022, "CS", "HELICAL MODE"),
        element(0x00180050, "DS", "5.000000"),
        element(0x00180060, "DS", "120"),
        element(0x00180090, "DS", "500.000000"),
        element(0x00181000, "LO", "SN-004711"),
        element(0x00181020, "LO", "syngo 2011A"),
        element(0x00181030, "LO", "5.1 Thorax Routine"),
        element(0x00181100, "DS", "350.000000"),
        element(0x00181110, "DS", "949.075012"),
        element(0x00181111, "DS", "541.000000"),
        element(0x00181120, "DS", "0.000000"),
        element(0x00181130, "DS", "133.000000"),
        element(0x00181140, "CS", "CW"),
        element(0x00181150, "IS", "500"),
        element(0x00181151, "IS", "221"),
        element(0x00181152, "IS", "110"),
        element(0x00181160, "SH", "BODY FILTER"),
        element(0x00181170, "IS", "27"),
        element(0x00181190, "DS", "1.2"),
        element(0x00181210, "SH", "B30f"),
        element(0x00185100, "CS", "HFS"),
        element(0x00190010, "LO", "MAKER ACQU 1.0"),
        *(element(0x00191001 + n, "DS", f"{n * 1.25:.5f}") for n in range(40)),
        element(0x0020000D, "UI", about.uid),
        element(0x0020000E, "UI", about.series_uid(series)),
        element(0x00200010, "SH", f"S{about.number:06}"),
        element(0x00200011, "IS", str(1 + series)),
        element(0x00200012, "IS", "2"),
        element(0x00200013, "IS", _NUMBER_HOLDER),
        element(0x00200032, "DS", "-175.000000\\-175.000000\\-432.100006"),
        element(0x00200037, "DS", "1.000000\\0.000000\\0.000000\\0.000000\\1.000000\\0.000000"),
        element(0x00200052, "UI", about.uid + ".0"),
        element(0x00200060, "CS", ""),
        element(0x00201040, "LO", "SN"),
        element(0x00201041, "DS", "-432.1000061"),
        element(0x00210010, "LO", "MAKER IMAGE 1.0"),
        *(element(0x00211001 + n, "SS", pack("<h", n)) for n in range(30)),
        element(0x00280002, "US", 1),
        element(0x00280004, "CS", "MONOCHROME2"),
        element(0x00280010, "US", 128),
        element(0x00280011, "US", 128),
        element(0x00280030, "DS", "0.683593750\\0.683593750"),
        element(0x00280100, "US", 16),
        element(0x00280101, "US", 16),
        element(0x00280102, "US", 15),
        element(0x00280103, "US", 0),
        element(0x00280120, "US", 63_536),
        element(0x00281050, "DS", "40\\-600"),
        element(0x00281051, "DS", "400\\1600"),
        element(0x00281052, "DS", "-1024"),
        element(0x00281053, "DS", "1"),
        element(0x00281054, "LO", "HU"),
        element(0x00400002, "DA", about.date),
        element(0x00400003, "TM", about.time),
        element(0x00400244, "DA", about.date),
        element(0x00400245, "TM", about.time),
        element(0x00400253, "SH", f"P{about.number:06}"),
        element(0x00400254, "LO", "CT THORAX"),
        sequence(
            0x00400275,
            (
                element(0x00321060, "LO", "CT THORAX"),
                element(0x00400007, "LO", "CT THORAX"),
                sequence(0x00400008, code),
                element(0x00400009, "SH", f"SPS{about.number:06}"),
                element(0x00401001, "SH", f"RP{about.number:06}"),
            ),
        ),
    ]


_IN_SEQUENCES = 3 + 2 + 6 + 5 + 3  # elements of _ct_elements that stand inside an item


def _ct_head(about: Study, series: int, rows: int, columns: int, transfer_syntax: str = EXPLICIT_LE) -> bytes:
    """Everything before Pixel Data: 260 elements and 6,300 bytes, private ones as many as that takes."""
    elements = _ct_elements(about, series)
    size = {0x00280010: rows, 0x00280011: columns}
    replaced = {element(tag, "US", 128)[:8]: element(tag, "US", count) for tag, count in size.items()}
    elements = [replaced.get(one[:8], one) for one in elements]
    meta = file_meta(_UID_HOLDER, CT_IMAGE, transfer_syntax)
    elements.append(element(0x00430010, "LO", "MAKER PARM 1.0"))
    left = ELEMENT_COUNT - _IN_SEQUENCES - len(elements)
    room = HEAD_BYTES - len(meta) - sum(map(len, elements)) - 8 * left
    even, odd = divmod(room // 2, left)
    for n in range(left):
        words = even + (n < odd)
        elements.append(element(0x00431001 + n, "LO", f"{n:06}".ljust(2 * words, "x")[: 2 * words]))
    head = meta + b"".join(elements)
    if len(head) != HEAD_BYTES:
        raise AssertionError(f"a head of {len(head)} bytes")
    return head


def _fill(template: bytes, uid: bytes, number: int) -> bytes:
    return template.replace(_UID_HOLDER, uid).replace(_NUMBER_HOLDER, b"%04d" % number)


def header_files(count: int, *, pixels: int = TINY_PIXELS) -> list[bytes]:
    """`count` files of one CT series each, all different, with few pixels: the header is what counts."""
    rng = random.Random(SEED)
    made = []
    for n in range(count):
        about = study(n)
        head = _fill(_ct_head(about, 0, 1, pixels // 2), about.sop_uid(0, 0), 1)
        made.append(head + element(0x7FE00010, "OW", rng.randbytes(pixels)))
    return made


def ct_series(number: int, count: int, *, pixels: int = SMALL_PIXELS, series: int = 0) -> Iterator[bytes]:
    """The files of a series of study `number`: `count` slices that differ in UID, number and pixels."""
    rows = 1 if pixels == TINY_PIXELS else _rows_of(pixels)
    rng = random.Random(f"{SEED} series {number} {series}")
    about = study(number)
    head = _ct_head(about, series, rows, pixels // 2 // rows)
    head += element(0x7FE00010, "OW")[:-4] + pack("<I", pixels)
    for instance in range(count):
        yield _fill(head, about.sop_uid(series, instance), 1 + instance) + rng.randbytes(pixels)


def ct_picture(number: int) -> bytes:
    """512 x 512 pixels of 16 bits: soft shapes and noise, as codecs like them. Water is 1,024."""
    import numpy as np

    dice = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : PICTURE_SIDE * 1j, -1 : 1 : PICTURE_SIDE * 1j]
    frame = np.full((PICTURE_SIDE, PICTURE_SIDE), 124.0)
    for _ in range(12):
        at_x, at_y = dice.uniform(-0.5, 0.5, 2)
        wide, high = dice.uniform(0.1, 0.6, 2)
        inside = ((x - at_x) / wide) ** 2 + ((y - at_y) / high) ** 2 < 1
        frame[inside] = dice.uniform(900, 1500)
    frame += dice.normal(0, 12, frame.shape)
    return frame.astype("<u2").tobytes()


def ct_pictures(number: int, frames: Sequence[bytes], transfer_syntax: str = EXPLICIT_LE) -> Iterator[bytes]:
    """The files of a series of study `number` with a 512 x 512 frame each, native or encapsulated."""
    about = study(number)
    head = _ct_head(about, 0, PICTURE_SIDE, PICTURE_SIDE, transfer_syntax)
    for instance, frame in enumerate(frames):
        own = _fill(head, about.sop_uid(0, instance), 1 + instance)
        if transfer_syntax == EXPLICIT_LE:
            yield own + element(0x7FE00010, "OW", frame)
        else:
            value = _item(b"") + _item(frame + b"\0" * (len(frame) % 2)) + pack("<HHI", 0xFFFE, 0xE0DD, 0)
            yield own + element(0x7FE00010, "OB", b"")[:-4] + b"\xff\xff\xff\xff" + value


def series_path(number: int, series: int = 0) -> str:
    """The path of a series in DICOMweb."""
    about = study(number)
    return f"/studies/{about.uid}/series/{about.series_uid(series)}"


def slice_path(number: int, instance: int, series: int = 0) -> str:
    """And of an instance of it."""
    uid = study(number).sop_uid(series, instance).decode()
    return f"{series_path(number, series)}/instances/{uid}"


def write_tree(root: str, count: int, *, pixels: int = SMALL_PIXELS, first: int = 0) -> int:
    """Write `count` slices as root/study/series/file; return their bytes. Nothing is synced.

    Their numbers begin with `first`, which must begin a series.
    """
    rng = random.Random(f"{SEED} {first}" if first else SEED)
    rows = _rows_of(pixels)
    written = 0
    head, folder = b"", ""
    about = study(0)
    for n in range(first, first + count):
        series, instance = n // SERIES_INSTANCES % STUDY_SERIES, n % SERIES_INSTANCES
        if instance == 0:
            about = study(n // STUDY_INSTANCES)
            head = _ct_head(about, series, rows, pixels // 2 // rows)
            head += element(0x7FE00010, "OW", b"")[:-4] + pack("<I", pixels)
            folder = os.path.join(root, f"{about.number:05}", f"{series:02}")
            os.makedirs(folder)
        data = _fill(head, about.sop_uid(series, instance), 1 + instance) + rng.randbytes(pixels)
        with open(os.path.join(folder, f"{instance:06}.dcm"), "wb", buffering=0) as file:
            file.write(data)
        written += len(data)
    return written


def _rows_of(pixels: int) -> int:
    return 128 if pixels == SMALL_PIXELS else 512


def tree_uid(number: int) -> str:
    """SOP Instance UID of the file that write_tree() wrote as its `number`th, from 0."""
    about = study(number // STUDY_INSTANCES)
    return about.sop_uid(number // SERIES_INSTANCES % STUDY_SERIES, number % SERIES_INSTANCES).decode()


def tree_path(root: str, number: int) -> str:
    """And its path."""
    series, instance = number // SERIES_INSTANCES % STUDY_SERIES, number % SERIES_INSTANCES
    return os.path.join(root, f"{number // STUDY_INSTANCES:05}", f"{series:02}", f"{instance:06}.dcm")


def tree_slice(number: int) -> str:
    """And its path in DICOMweb."""
    series, instance = number // SERIES_INSTANCES % STUDY_SERIES, number % SERIES_INSTANCES
    return slice_path(number // STUDY_INSTANCES, instance, series)


# --- Small instances, for the batch API -------------------------------------------------------


def _tiny_head(about: Study, series: int) -> bytes:
    elements = [
        element(0x00080005, "CS", "ISO_IR 100"),
        element(0x00080016, "UI", SECONDARY_CAPTURE),
        element(0x00080018, "UI", _UID_HOLDER),
        element(0x00080020, "DA", about.date),
        element(0x00080030, "TM", about.time),
        element(0x00080050, "SH", about.accession),
        element(0x00080060, "CS", "CT"),
        element(0x00080090, "PN", "REFERRER^RUTH"),
        element(0x00081030, "LO", "CT THORAX WITH CONTRAST"),
        element(0x0008103E, "LO", f"AXIAL {series}"),
        element(0x00100010, "PN", about.name),
        element(0x00100020, "LO", about.patient_id),
        element(0x00100030, "DA", about.birth_date),
        element(0x00100040, "CS", about.sex),
        element(0x0020000D, "UI", about.uid),
        element(0x0020000E, "UI", about.series_uid(series)),
        element(0x00200010, "SH", f"S{about.number:06}"),
        element(0x00200011, "IS", str(1 + series)),
        element(0x00200013, "IS", _NUMBER_HOLDER),
        element(0x00280002, "US", 1),
        element(0x00280004, "CS", "MONOCHROME2"),
        element(0x00280010, "US", 16),
        element(0x00280011, "US", 32),
        element(0x00280100, "US", 16),
        element(0x00280101, "US", 16),
        element(0x00280102, "US", 15),
        element(0x00280103, "US", 0),
        element(0x00430010, "LO", "MAKER PARM 1.0"),
    ]
    head = file_meta(_UID_HOLDER, SECONDARY_CAPTURE, EXPLICIT_LE) + b"".join(elements)
    room = TINY_BYTES - TINY_PIXELS - len(head) - 2 * len(element(0x7FE00010, "OW"))
    head += element(0x00431001, "UN", b"\0" * room)
    return head + element(0x7FE00010, "OW", b"")[:-4] + pack("<I", TINY_PIXELS)


def small_instances(first: int, count: int) -> list[bytes]:
    """Instances `first` and the next ones, 2,048 bytes each; 100 a series, 2 series a study."""
    noise = random.Random(f"{SEED} {first}").randbytes(TINY_PIXELS * count)
    made = []
    at, head = -1, b""
    about = study(0)
    for n in range(first, first + count):
        if n // SERIES_INSTANCES != at:
            at = n // SERIES_INSTANCES
            about = study(n // STUDY_INSTANCES)
            head = _tiny_head(about, at % STUDY_SERIES)
        uid = about.sop_uid(at % STUDY_SERIES, n % SERIES_INSTANCES)
        pixels = noise[(n - first) * TINY_PIXELS : (n - first + 1) * TINY_PIXELS]
        made.append(_fill(head, uid, 1 + n % SERIES_INSTANCES) + pixels)
    return made


def studies(first: int, count: int) -> list[bytes]:
    """Studies `first` and the next ones, of one such instance each."""
    noise = random.Random(f"{SEED} {first}").randbytes(TINY_PIXELS * count)
    made = []
    for n in range(first, first + count):
        about = study(n)
        pixels = noise[(n - first) * TINY_PIXELS : (n - first + 1) * TINY_PIXELS]
        made.append(_fill(_tiny_head(about, 0), about.sop_uid(0, 0), 1) + pixels)
    return made


# --- Very many frames -----------------------------------------------------------------------

FRAME_ROWS, FRAME_COLUMNS = 128, 83  # of two bytes: 200,000 frames stay under 4 GiB, the most one value holds
FRAME_BYTES = FRAME_ROWS * FRAME_COLUMNS * 2
MULTIFRAME_UID = study(0).sop_uid(0, 0).decode()


def _multiframe_head(transfer_syntax: str, frame_count: int, number: int) -> bytes:
    about = study(number)
    uid = about.sop_uid(0, 0)
    return file_meta(uid, SECONDARY_CAPTURE, transfer_syntax) + b"".join(
        (
            element(0x00080016, "UI", SECONDARY_CAPTURE),
            element(0x00080018, "UI", uid),
            element(0x00080020, "DA", about.date),
            element(0x00080060, "CS", "XA"),
            element(0x00100010, "PN", about.name),
            element(0x00100020, "LO", about.patient_id),
            element(0x0020000D, "UI", about.uid),
            element(0x0020000E, "UI", about.series_uid(0)),
            element(0x00280002, "US", 1),
            element(0x00280004, "CS", "MONOCHROME2"),
            element(0x00280008, "IS", str(frame_count)),
            element(0x00280010, "US", FRAME_ROWS),
            element(0x00280011, "US", FRAME_COLUMNS),
            element(0x00280100, "US", 16),
            element(0x00280101, "US", 16),
            element(0x00280102, "US", 15),
            element(0x00280103, "US", 0),
        )
    )


def multiframe_uid(number: int = 0) -> str:
    """SOP Instance UID of what write_native() or write_encapsulated() wrote with this number."""
    return study(number).sop_uid(0, 0).decode()


def frame_noise(index: int, size: int) -> bytes:
    """What frame `index`, from 0, holds."""
    return random.Random(SEED + index).randbytes(size)


def write_native(
    path: str, frame_count: int, marked: Iterable[int] = (), *, extra: int = 0, number: int = 0
) -> int:
    """Write a sparse file of `frame_count` native frames; return its size.

    Frames in `marked` hold frame_noise(), the others zeros that take no space. `extra` is the length of a
    private value in front of the pixels, also zeros.
    """
    head = _multiframe_head(EXPLICIT_LE, frame_count, number)
    if extra:
        head += element(0x00430010, "LO", "MAKER PARM 1.0")
        head += element(0x00431001, "OB", b"")[:-4] + pack("<I", extra)
    pixels = element(0x7FE00010, "OW", b"")[:-4] + pack("<I", frame_count * FRAME_BYTES)
    start = len(head) + extra + len(pixels)
    with open(path, "wb", buffering=0) as file:
        file.write(head)
        file.seek(len(head) + extra)
        file.write(pixels)
        for index in marked:
            file.seek(start + index * FRAME_BYTES)
            file.write(frame_noise(index, FRAME_BYTES))
        file.truncate(start + frame_count * FRAME_BYTES)
    return start + frame_count * FRAME_BYTES


_BLOCK = 1 << 20
_BLOCK_NOISE = random.Random(SEED).randbytes(_BLOCK)
_NATIVE_MAX = 4 * 10**9  # bytes of native pixels; a value has less than 2**32


class Large(NamedTuple):
    """An object that is made piece by piece, as long as one likes. No two blocks of such are the same."""

    number: int
    head: bytes
    extra: int  # bytes of a private value in front of the pixels
    pixels_head: bytes
    pixels: int  # bytes
    path: str  # of its frames in DICOMweb

    @property
    def size(self) -> int:
        return len(self.head) + self.extra + len(self.pixels_head) + self.pixels

    def pieces(self) -> Iterator[bytes]:
        """All of it, a mebibyte at a time."""
        yield self.head
        for at in range(0, self.extra, _BLOCK):
            yield self._block(-1 - at // _BLOCK)[: self.extra - at]
        yield self.pixels_head
        for at in range(0, self.pixels, _BLOCK):
            yield self._block(at // _BLOCK)[: self.pixels - at]

    def frame(self, index: int) -> bytes:
        """What frame `index`, from 0, holds."""
        begin = index * FRAME_BYTES
        end = begin + FRAME_BYTES
        first, last = begin // _BLOCK, (end - 1) // _BLOCK
        data = b"".join(self._block(block) for block in range(first, last + 1))
        return data[begin - first * _BLOCK : end - first * _BLOCK]

    @property
    def frame_count(self) -> int:
        return self.pixels // FRAME_BYTES

    def _block(self, block: int) -> bytes:
        return pack("<qq", self.number, block) + _BLOCK_NOISE[16:]


def large_object(number: int, length: int) -> Large:
    """An object of about `length` bytes in study `number`."""
    extra = max(0, length - _NATIVE_MAX)
    frames = (length - extra) // FRAME_BYTES
    head = _multiframe_head(EXPLICIT_LE, frames, number)
    if extra:
        head += element(0x00430010, "LO", "MAKER PARM 1.0")
        head += element(0x00431001, "OB", b"")[:-4] + pack("<I", extra)
    pixels = frames * FRAME_BYTES
    pixels_head = element(0x7FE00010, "OW", b"")[:-4] + pack("<I", pixels)
    return Large(number, head, extra, pixels_head, pixels, f"{slice_path(number, 0)}/frames")


def encapsulated_frame(index: int) -> bytes:
    """Frame `index`, from 0, of what write_encapsulated() writes: about 1 KB, and no codec's."""
    return frame_noise(index, 1_000 + 2 * (index % 30))


def write_encapsulated(path: str, frame_count: int, *, number: int = 1) -> int:
    """Write frames of one fragment each behind an empty offset table; return the file's size."""
    with open(path, "wb") as file:
        file.write(_multiframe_head(JPEG_2000, frame_count, number))
        file.write(element(0x7FE00010, "OB", b"")[:-4] + b"\xff\xff\xff\xff" + _item(b""))
        for index in range(frame_count):
            file.write(_item(encapsulated_frame(index)))
        file.write(pack("<HHI", 0xFFFE, 0xE0DD, 0))
        return file.tell()


# --- Expectations ------------------------------------------------------------------------------


def newest(count: int, limit: int) -> list[str]:
    """Study UIDs of the `limit` newest among the first `count` studies, newest first."""
    order = sorted(range(count), key=lambda n: n * _STEP % _MOMENTS, reverse=True)
    return [study(n).uid for n in order[:limit]]


def names_with(text: str, count: int) -> Iterator[str]:
    """Study UIDs among the first `count` whose patient's name holds `text`, which is in lower case."""
    return (about.uid for about in map(study, range(count)) if text in about.name.lower())

"""What Orthanc's integration tests ask of a DICOMweb server, asked of ours: the cases of its plugin's suite
in our words and on objects of our own, over a socket. Its servers API is test_orthanc_dicomweb.py.

Where the suite wants what the Standard, or its text of today, has otherwise, the case says so:
- what can't be understood or given is 406 or 415, and not always 400; a STOW-RS without success is 409;
- metadata are UTF-8 and say ISO_IR 192, and not the character set of the file; DS are numbers;
- a rendered series or study is a part for each image, and not one image;
- LINEAR_EXACT has its 0.5 (PS3.3 C.11.2.1.3.2), which older editions left out;
- WADO-URI wants its three UIDs (PS3.18 9.4.1.2); nothing is encoded with loss.
"""

from __future__ import annotations

import email
import io
import json
import math
import urllib.error
import urllib.request
from collections.abc import Iterator
from struct import pack
from typing import Any, NamedTuple
from urllib.parse import quote

import imagecodecs
import numpy as np
import pydicom
import pytest
from lxml import etree
from makers import element, make_object, sequence
from peers.serving import server
from PIL import Image

pytestmark = pytest.mark.peers

JPEG = "1.2.840.10008.1.2.4.50"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
CT = "1.2.840.10008.5.1.4.1.1.2"
ROWS, COLUMNS = 36, 52
GREY = (np.arange(ROWS * COLUMNS) % 256).astype("u1").reshape(ROWS, COLUMNS)
COLOUR = np.dstack([GREY, GREY // 2, 255 - GREY])
CODESTREAM = bytes(imagecodecs.jpeg8_encode(GREY, level=95))


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def rows(self) -> Any:
        assert self.status == 200, (self.status, self.body[:300])
        return json.loads(self.body)

    @property
    def image(self) -> Image.Image:
        assert self.status == 200, (self.status, self.body[:300])
        return Image.open(io.BytesIO(self.body))

    @property
    def parts(self) -> list[tuple[Any, bytes]]:
        """(headers, body) of each part."""
        assert self.status == 200, (self.status, self.body[:300])
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        whole = email.message_from_bytes(head + self.body)
        assert whole.is_multipart()
        boundary = b"--" + str(whole.get_boundary()).encode()
        # email makes text of bodies: it is asked for the headers alone.
        bodies = self.body.split(boundary)[1:-1]
        return [
            (part, body.partition(b"\r\n\r\n")[2][:-2])
            for part, body in zip(whole.get_payload(), bodies, strict=True)
        ]


class Served:
    """A server with a client that sends what it is told and nothing else."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.root = f"{url}/dicom-web"

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        path = path if path.startswith("/wado?") else f"/dicom-web{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data=body, headers=named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as failure:
            with failure:
                return Answer(failure.code, failure.headers, failure.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, **headers)

    def put(self, *files: bytes, study: str = "", kind: str = "application/dicom") -> Answer:
        """Store, in the way of old clients: no quotes, and no line end behind the last boundary."""
        body = b"".join(b"--b\r\nContent-Type: %s\r\n\r\n%s\r\n" % (kind.encode(), file) for file in files)
        return self.send(
            "POST", f"/studies{study}", body + b"--b--",
            Content_Type="multipart/related; type=application/dicom; boundary=b", Accept="application/json",
        )  # fmt: skip

    def stored(self, file: bytes) -> str:
        """Store one, and return its path."""
        answer = self.put(file)
        assert answer.status == 200, answer
        url = answer.rows["00081199"]["Value"][0]["00081190"]["Value"][0]
        return str(url.removeprefix(self.root))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("suite") / "store"
    settings = ["--set", "http.allowed_hosts=*", "--set", "http.trusted_proxies=127.0.0.1"]
    with server(store, "--allow-delete", *settings) as found:
        yield found


@pytest.fixture
def served(url: str) -> Served:
    """The server, with nothing in it."""
    found = Served(url)
    for row in found.get("/studies").rows:
        assert found.send("DELETE", f"/studies/{row['0020000D']['Value'][0]}").status == 204
    return found


def ct(number: int = 1, study: str = "2.25.2", **more: Any) -> bytes:
    return make_object(
        f"{study}.3.{number}", study, f"{study}.3", pixels=GREY.tobytes(), rows=ROWS, columns=COLUMNS, **more
    )


def colour() -> bytes:
    extra = [
        (0x00280002, element(0x00280002, "US", 3)),
        (0x00280004, element(0x00280004, "CS", "RGB")),
        (0x00280006, element(0x00280006, "US", 0)),
    ]
    return make_object(
        "2.25.6.3.1", "2.25.6", "2.25.6.3", pixels=COLOUR.tobytes(), rows=ROWS, columns=COLUMNS, extra=extra
    )


def jpeg(frames: int = 1, fragments: list[bytes] | None = None) -> bytes:
    return make_object(
        "2.25.5.3.1", "2.25.5", "2.25.5.3", fragments=fragments or [CODESTREAM] * frames, frames=frames,
        rows=ROWS, columns=COLUMNS,
    )  # fmt: skip


# --- WADO-URI ----------------------------------------------------------------------------------------


def test_wado_uri_gives_the_file(served):
    file = ct()
    served.stored(file)
    whole = "/wado?requestType=WADO&studyUID=2.25.2&seriesUID=2.25.2.3&objectUID=2.25.2.3.1"
    asked = f"{whole}&contentType=application/dicom"
    data_set = pydicom.dcmread(io.BytesIO(served.get(asked).body))
    assert data_set == pydicom.dcmread(io.BytesIO(file))
    assert served.get(asked).headers["content-type"] == "application/dicom"
    for wrong in (
        "/wado?x", "/wado?requestType=WADO", "/wado?objectUID=2.25.2.3.1",
        whole.replace("seriesUID=2.25.2.3", "seriesUID=nope"),
        whole.replace("studyUID=2.25.2", "studyUID=nope"),
    ):  # fmt: skip
        assert served.get(wrong).status in (400, 404), wrong


def test_wado_uri_gives_a_picture(served):
    served.stored(ct())
    whole = "/wado?requestType=WADO&studyUID=2.25.2&seriesUID=2.25.2.3&objectUID=2.25.2.3.1"
    for kind, format_ in (
        ("", "JPEG"),
        ("&contentType=image/jpg", "JPEG"),
        ("&contentType=image/jpeg", "JPEG"),
        ("&contentType=image/png", "PNG"),
    ):
        image = served.get(whole + kind).image
        assert (image.format, image.mode, image.size) == (format_, "L", (COLUMNS, ROWS)), kind


def test_wado_uri_and_wado_rs_give_the_same_picture(served):
    path = served.stored(ct(extra=[
        (0x00281050, element(0x00281050, "DS", "100")), (0x00281051, element(0x00281051, "DS", "150")),
    ]))  # fmt: skip
    whole = "/wado?requestType=WADO&studyUID=2.25.2&seriesUID=2.25.2.3&objectUID=2.25.2.3.1"
    png = np.asarray(served.get(f"{whole}&contentType=image/png").image)
    for other in (f"{path}/rendered", f"{path}/frames/1/rendered", f"{path}/rendered?window=100,150,linear"):
        assert np.array_equal(np.asarray(served.get(other, Accept="image/png").image), png), other
        near = np.asarray(served.get(other, Accept="image/jpeg").image).astype(int)
        assert np.abs(near - png).max() <= 10, other


# --- STOW-RS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["application/dicom", f"application/dicom;transfer-syntax={EXPLICIT}"])
def test_stow_tells_what_is_stored_and_where(served, kind):
    file = ct()
    for _ in range(2):  # again: nothing happens, and it is success
        said = served.put(file, kind=kind).rows
        assert len(served.get("/instances").rows) == 1
    assert said["00081190"] == {"vr": "UR", "Value": [f"{served.root}/studies/2.25.2"]}
    assert "00081198" not in said
    (one,) = said["00081199"]["Value"]
    assert one["00081150"] == {"vr": "UI", "Value": [CT]}
    assert one["00081155"] == {"vr": "UI", "Value": ["2.25.2.3.1"]}
    place = f"{served.root}/studies/2.25.2/series/2.25.2.3/instances/2.25.2.3.1"
    assert one["00081190"] == {"vr": "UR", "Value": [place]}
    ((_, body),) = served.get(
        "/studies/2.25.2", Accept="multipart/related;type=application/dicom;transfer-syntax=*"
    ).parts
    assert body == file


def test_stow_tells_what_is_not_stored_and_why(served):
    refused = served.put(ct(), study="/2.25.404")
    assert refused.status == 409
    said = json.loads(refused.body)
    assert "00081199" not in said
    (one,) = said["00081198"]["Value"]
    assert (one["00081150"]["Value"], one["00081155"]["Value"]) == ([CT], ["2.25.2.3.1"])
    assert len(one["00081197"]["Value"]) == 1
    without_study = make_object("2.25.9", "", "", pixels=b"ab")
    for broken in (without_study, b"no DICOM at all"):
        refused = served.put(broken)
        assert refused.status == 409
        assert "00081199" not in json.loads(refused.body)
    assert served.get("/instances").rows == []


def test_other_methods_are_refused_with_those_that_are_there(served):
    for method in ("PUT", "DELETE"):
        refused = served.send(method, "/studies")
        assert refused.status == 405
        assert {"GET", "POST"} <= {word.strip() for word in refused.headers["allow"].split(",")}


# --- QIDO-RS ------------------------------------------------------------------------------------------


def test_limit_and_offset_part_the_whole(served):
    served.put(ct(study="2.25.2"), ct(study="2.25.4"))
    assert len(served.get("/studies", accept="application/json").rows) == 2
    found = [served.get(f"/studies?limit=1&offset={at}").rows for at in (0, 1)]
    assert {row["0020000D"]["Value"][0] for (row,) in found} == {"2.25.2", "2.25.4"}


def test_an_empty_attribute_has_its_vr_alone(served):
    path = served.stored(ct(accession=""))
    assert served.get(f"{path}/metadata").rows[0]["00080050"] == {"vr": "SH"}
    assert served.get("/studies").rows[0]["00080050"] == {"vr": "SH"}


def test_numbers_are_numbers(served):
    path = served.stored(ct(extra=[(0x00180091, element(0x00180091, "IS", "10"))]))
    assert served.get(f"{path}/metadata").rows[0]["00180091"] == {"vr": "IS", "Value": [10]}
    assert served.get("/studies").rows[0]["00201208"] == {"vr": "IS", "Value": [1]}


def test_any_element_is_matched_and_included(served):
    images = sequence(
        0x00081140, [element(0x00081155, "UI", "2.25.77"), element(0x00081155, "UI", "2.25.78")]
    )
    served.stored(ct(extra=[(0x00081140, images)]))
    assert "00280010" not in served.get("/studies").rows[0]
    assert served.get("/studies?includefield=Rows").rows[0]["00280010"]["Value"] == [ROWS]
    assert served.get("/studies?Rows=1").rows == []
    assert served.get(f"/studies?Rows={ROWS}").rows[0]["00280010"]["Value"] == [ROWS]
    (row,) = served.get("/studies/2.25.2/series/2.25.2.3/instances?includefield=00081140").rows
    assert row["00081140"]["Value"][0]["00081155"]["Value"] == ["2.25.77"]
    assert len(row["00081140"]["Value"]) == 2


def test_private_elements_are_included_and_their_creator_is_one_to_name(served):
    served.stored(ct(extra=[
        (0x00090010, element(0x00090010, "LO", "Lunit")), (0x00091001, element(0x00091001, "DS", "98.41")),
    ]))  # fmt: skip
    assert "00091001" not in served.get("/studies").rows[0]
    for query in ("includefield=00091001", "00090010=Lunit&includefield=00091001"):
        (row,) = served.get(f"/studies?{query}").rows
        assert row["00091001"] == {"vr": "DS", "Value": [98.41]}, query


def test_rows_bring_what_stands_above_them_if_it_was_not_named(served):
    served.stored(ct(name="Doe^Jane"))
    study, series, uid = "0020000D", "0020000E", "00080018"
    for path, there, not_there in (
        ("/studies", (study, "00100010"), (series, uid)),
        (f"/studies?{study}=2.25.2", (study, "00100010"), (series, uid)),
        ("/series", (study, series, "00080060", "00100010", "00080020"), (uid,)),
        ("/instances", (study, series, uid, "00080060", "00100010", "00080020"), ()),
        ("/studies/2.25.2/series", (study, series, "00080060"), (uid,)),
        ("/studies/2.25.2/series/2.25.2.3/instances", (study, series, uid), ()),
        (f"/series?{study}=2.25.2", (study, series), (uid,)),
        (f"/instances?{study}=2.25.2&{series}=2.25.2.3", (study, series, uid), ()),
        (f"/series?{study}=2.25.2&includefield=00100010&includefield=00080020", ("00100010", "00080020"), ()),
        (f"/instances?{study}=2.25.2&includefield=00100010,00080060", ("00100010", "00080060"), ()),
    ):
        (row,) = served.get(path).rows
        assert all(tag in row for tag in there), path
        assert not any(tag in row for tag in not_there), path


@pytest.mark.parametrize(
    ("character_set", "raw", "name"),
    [
        ("ISO_IR 100", "Buc^Jérôme".encode("latin-1"), {"Alphabetic": "Buc^Jérôme"}),
        ("ISO_IR 100", "Äneas^Rüdiger".encode("latin-1"), {"Alphabetic": "Äneas^Rüdiger"}),
        ("ISO_IR 126", "Διονυσιος".encode("iso8859-7"), {"Alphabetic": "Διονυσιος"}),
        ("ISO_IR 144", "Люксембург".encode("iso8859-5"), {"Alphabetic": "Люксембург"}),
        ("ISO_IR 138", "שרון^דבורה".encode("iso8859-8"), {"Alphabetic": "שרון^דבורה"}),
        ("ISO_IR 127", "قباني^لنزار".encode("iso8859-6"), {"Alphabetic": "قباني^لنزار"}),
        (
            "GB18030", "Wang^XiaoDong=王^小东".encode("gb18030"),
            {"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小东"},
        ),
        (
            "ISO_IR 192", "Wang^XiaoDong=王^小東".encode(),
            {"Alphabetic": "Wang^XiaoDong", "Ideographic": "王^小東"},
        ),
        (
            "\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B="
            b"\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"},
        ),
        (
            "ISO_IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
            {"Alphabetic": "ﾔﾏﾀﾞ^ﾀﾛｳ", "Ideographic": "山田^太郎"},
        ),
        (
            "\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7="
            b"\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            {"Alphabetic": "Hong^Gildong", "Ideographic": "洪^吉洞", "Phonetic": "홍^길동"},
        ),
    ],
)  # fmt: skip
def test_names_in_any_character_set_leave_as_utf_8(served, character_set, raw, name):
    extra = [(0x00100010, element(0x00100010, "PN", raw))]
    path = served.stored(ct(character_set=character_set, extra=extra))
    for found in (
        served.get("/studies?0020000D=2.25.2").rows[0],
        served.get(f"{path}/metadata").rows[0],
        served.get(f"/studies?PatientName={quote(name['Alphabetic'])}").rows[0],
    ):
        assert found["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
        assert found["00100010"] == {"vr": "PN", "Value": [name]}


def test_names_match_in_any_case(served):
    served.stored(ct(character_set="ISO_IR 192", extra=[
        (0x00100010, element(0x00100010, "PN", "Гусева^Анна".encode())),
    ]))  # fmt: skip
    for pattern in ("Гусева*", "гусева*", "ГУСЕВА^анна"):
        assert len(served.get(f"/studies?PatientName={quote(pattern)}", accept="application/json").rows) == 1


# --- WADO-RS: metadata ----------------------------------------------------------------------------------


def test_metadata_at_all_levels_are_the_same_and_404_elsewhere(served):
    path = served.stored(ct())
    one = served.get(f"{path}/metadata", accept="application/dicom+json").rows
    for above in ("/studies/2.25.2", "/studies/2.25.2/series/2.25.2.3"):
        assert served.get(f"{above}/metadata").rows == one
    for missing in (
        "/studies/0.0.0",
        "/studies/0.0.0/series/2.25.2.3",
        "/studies/2.25.2/series/0.0.0",
        path.replace("2.25.2.3.1", "0.0.0.0.0"),
        path.replace("/studies/2.25.2/", "/studies/0.0/"),
        path.replace("/series/2.25.2.3/", "/series/0.0/"),
        "/studies/0.0/series/0.0/instances/0.0",
    ):
        assert served.get(f"{missing}/metadata").status == 404, missing
    assert served.get(f"{path}/metadata", accept="application/nope").status == 406


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "json"),
        ("application/json", "json"),
        ("application/dicom+json", "json"),
        ("application/json, application/dicom+json", "json"),
        ("toto, application/dicom+json", "json"),
        ("application/json, tata", "json"),
        ("application/json, application/dicom+xml", "json"),
        ("image/webp, */*;q=0.8, text/html, application/xhtml+xml, application/xml;q=0.9", "json"),
        ("text/html, application/xhtml+xml, application/xml, image/webp, */*;q=0.8", "json"),
        ("text/html, image/gif, image/jpeg, */*; q=.2, */*; q=.2", "json"),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", "json"),
        ("multipart/related;type=application/dicom+xml", "xml"),
        ('multipart/related; type="application/dicom+xml"', "xml"),
        ("application/nope", 406),
        ("toto", 400),
        ("toto, tata", 400),
        ("multipart/nope", 406),
        ('multipart/related; type="application/nope"', 406),
    ],
)
def test_metadata_come_in_what_is_accepted(served, accept, kind):
    path = served.stored(ct())
    answer = served.get(f"{path}/metadata", **({"accept": accept} if accept else {}))
    if isinstance(kind, int):
        assert answer.status == kind
    elif kind == "xml":
        ((head, body),) = answer.parts
        assert head["content-type"].startswith("application/dicom+xml")
        assert etree.fromstring(body).tag.endswith("NativeDicomModel")
    else:
        assert answer.headers["content-type"] in ("application/dicom+json", "application/json")
        assert answer.rows[0]["0020000D"]["Value"] == ["2.25.2"]


def test_unknown_elements_are_told_and_their_values_given(served):
    path = served.stored(ct(extra=[
        (0x00084565, element(0x00084565, "UN", b"")), (0x00084567, element(0x00084567, "UN", b"\x42\0")),
    ]))  # fmt: skip
    (document,) = served.get(f"{path}/metadata").rows
    assert document["00084565"] == {"vr": "UN"}
    assert document["00084567"] in (
        {"vr": "UN", "InlineBinary": "QgA="},
        {"vr": "UN", "BulkDataURI": f"{served.root}{path}/bulkdata/00084567"},
    )
    ((_, body),) = served.get(f"{path}/bulkdata/00084567").parts
    assert body == b"\x42\0"


def test_arrays_of_numbers_are_binary_or_named_by_uri(served):
    path = served.stored(ct(extra=[
        (0x00660016, element(0x00660016, "OF", pack("<3f", 10.1, 20.2, 30.3))),
        (0x00660041, element(0x00660041, "OL", pack("<3I", 42, 0, 15))),
        (0x0070150D, element(0x0070150D, "OD", pack("<3d", 1.1, 2.2, 3.3))),
    ]))  # fmt: skip
    (document,) = served.get(f"{path}/metadata").rows
    for tag, vr, expected in (
        ("00660016", "OF", pack("<3f", 10.1, 20.2, 30.3)),
        ("00660041", "OL", pack("<3I", 42, 0, 15)),
        ("0070150D", "OD", pack("<3d", 1.1, 2.2, 3.3)),
    ):
        assert document[tag]["vr"] == vr
        assert {*document[tag]} - {"vr"} <= {"InlineBinary", "BulkDataURI"}
        ((_, body),) = served.get(f"{path}/bulkdata/{tag}").parts
        assert body == expected


def test_bulk_data_in_items_have_uris_that_answer(served):
    large = bytes(range(256)) * 48
    path = served.stored(ct(extra=[
        (0x60030010, element(0x60030010, "LO", "GEMS_Ultrasound_ImageGroup_001")),
        (0x60031010, sequence(0x60031010, [element(0x60031011, "OB", large[n:]) for n in (0, 256)])),
    ]))  # fmt: skip
    (document,) = served.get("/studies/2.25.2/metadata").rows
    for item, expected in zip(document["60031010"]["Value"], (large, large[256:]), strict=True):
        uri = item["60031011"]["BulkDataURI"]
        assert set(item["60031011"]) == {"vr", "BulkDataURI"}
        ((_, body),) = served.get(uri.removeprefix(served.root)).parts
        assert body == expected
    assert document["7FE00010"]["BulkDataURI"].startswith(f"{served.root}{path}/")


def test_compressed_pixels_as_bulk_data_are_their_codestreams(served):
    path = served.stored(jpeg())
    (row,) = served.get("/instances").rows
    assert row["00081190"]["Value"] == [served.root + path]
    pixels = served.get(f"{path}/metadata").rows[0]["7FE00010"]
    assert set(pixels) == {"vr", "BulkDataURI"}
    assert pixels["vr"] == "OB"
    uri = pixels["BulkDataURI"].removeprefix(served.root)
    accept = "multipart/related; type=application/octet-stream; transfer-syntax=*"
    ((_, body),) = served.get(uri, Accept=accept).parts
    assert body.rstrip(b"\0") == CODESTREAM.rstrip(b"\0")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (None, 200),
        ("multipart/nope", 406),
        ("multipart/related", 200),
        ("multipart/related;type=application/octet-stream", 200),
        ('multipart/related;   type =  "application/octet-stream"  ', 200),
        ('multipart/related;   type =  "  application/octet-stream"  ', 406),
        ("multipart/related;type=application/nope", 406),
    ],
)
def test_bulk_data_come_in_what_is_accepted(served, accept, status):
    path = served.stored(ct())
    answer = served.get(f"{path}/bulkdata/00100010", **({"accept": accept} if accept else {}))
    assert answer.status == status
    if status == 200:
        ((head, body),) = answer.parts
        assert head["content-type"].startswith("application/octet-stream")
        assert body.rstrip() == b"Doe^Jane"


def test_uris_are_those_of_the_proxy_that_asked(served):
    path = served.stored(ct())
    for headers, expected in (
        ({}, served.root),
        ({"host": "my-domain"}, "http://my-domain/dicom-web"),
        ({"forwarded": "host=my-domain;proto=https"}, "https://my-domain/dicom-web"),
        ({"X_Forwarded_Host": "my-domain", "X_Forwarded_Proto": "https"}, "https://my-domain/dicom-web"),
    ):
        (document,) = served.get(f"{path}/metadata", **headers).rows
        assert document["7FE00010"]["BulkDataURI"].startswith(f"{expected}/studies/"), headers


# --- WADO-RS: instances and frames ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (None, 200),
        ("multipart/nope", 406),
        ("multipart/related", 200),
        ("multipart/related; type=application/dicom", 200),
        ('multipart/related; type="application/dicom"', 200),
        ("multipart/related; type=application/nope", 406),
        ("multipart/related; transfer-syntax=*", 200),
        ("multipart/related; type=application/dicom; transfer-syntax=*", 200),
        ("multipart/related; transfer-syntax=nope", 406),
        (f"multipart/related; type=application/dicom; transfer-syntax={EXPLICIT}", 200),
    ],
)
def test_studies_come_in_what_is_accepted(served, accept, status):
    served.stored(colour())
    answer = served.get("/studies/2.25.6", **({"accept": accept} if accept else {}))
    assert answer.status == status
    if status == 200:
        ((head, body),) = answer.parts
        assert head["content-type"].startswith("application/dicom")
        assert np.array_equal(pydicom.dcmread(io.BytesIO(body)).pixel_array, COLOUR)


def test_instances_are_decoded_unless_they_are_wanted_as_they_are(served):
    file = jpeg()
    path = served.stored(file)
    assert served.get(path, Accept="nope").status == 400
    decoded = []
    for accept in (None, "multipart/related", "multipart/related; type=application/dicom",
                   f"multipart/related; type=application/dicom; transfer-syntax={EXPLICIT}"):  # fmt: skip
        ((_, body),) = served.get(path, **({"accept": accept} if accept else {})).parts
        found = pydicom.dcmread(io.BytesIO(body))
        assert found.file_meta.TransferSyntaxUID == EXPLICIT
        assert np.abs(found.pixel_array.astype(int) - GREY).max() <= 16
        decoded.append(body)
    assert len(set(decoded)) == 1
    for syntax in ("*", JPEG):
        accept = f"multipart/related; type=application/dicom; transfer-syntax={syntax}"
        ((_, body),) = served.get(path, accept=accept).parts
        assert body == file
    accept = "multipart/related; type=application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90"
    ((_, body),) = served.get(path, accept=accept).parts
    assert pydicom.dcmread(io.BytesIO(body)).file_meta.TransferSyntaxUID.endswith(".4.90")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (None, 200),
        ("multipart/related; type=application/octet-stream", 200),
        ('multipart/related; type="application/octet-stream"', 200),
        ('multipart/related; type="nope"', 406),
        ("multipart/related; type=nope", 406),
        ("nope", 400),
    ],
)
def test_frames_come_in_what_is_accepted(served, accept, status):
    path = served.stored(ct())
    answer = served.get(f"{path}/frames/1", **({"accept": accept} if accept else {}))
    assert answer.status == status
    if status == 200:
        ((head, body),) = answer.parts
        assert body == GREY.tobytes()
        assert head["content-location"] == f"{served.root}{path}/frames/1"
    assert served.get(f"{path}/frames/0").status == 400
    assert served.get(f"{path}/frames/2").status == 404


def test_big_endian_frames_leave_as_explicit_little_endian(served):
    def big(tag: int, vr: str, value: bytes) -> bytes:
        length = pack(">HI", 0, len(value)) if vr == "OW" else pack(">H", len(value))
        return pack(">HH", tag >> 16, tag & 0xFFFF) + vr.encode() + length + value

    elements = [
        (0x00080016, "UI", CT.encode() + b"\0"),
        (0x00080018, "UI", b"2.25.8.1"),
        (0x0020000D, "UI", b"2.25.8\0\0"),
        (0x0020000E, "UI", b"2.25.8.3"),
    ]
    numbers = {
        0x00280002: 1,
        0x00280010: 1,
        0x00280011: 3,
        0x00280100: 16,
        0x00280101: 16,
        0x00280102: 15,
        0x00280103: 0,
    }
    elements += [(tag, "US", pack(">H", number)) for tag, number in numbers.items()]
    elements += [(0x00280004, "CS", b"MONOCHROME2 "), (0x7FE00010, "OW", pack(">3H", 1, 2, 0x304))]
    head = make_object("2.25.8.1", "1", "1", transfer_syntax=BIG_ENDIAN)
    meta = head[: head.index(b"2.25.7") + 6]
    path = served.stored(meta + b"".join(big(*one) for one in sorted(elements)))
    ((part, body),) = served.get(f"{path}/frames/1").parts
    assert f"transfer-syntax={EXPLICIT}" in part["content-type"]
    assert body == pack("<3H", 1, 2, 0x304)


def test_frames_as_stored_and_decoded(served):
    path = served.stored(jpeg())
    accept = f"multipart/related; type=image/jpeg; transfer-syntax={JPEG}"
    ((head, body),) = served.get(f"{path}/frames/1", Accept=accept).parts
    assert body.rstrip(b"\0") == CODESTREAM.rstrip(b"\0")
    assert head["content-type"] == f"image/jpeg; transfer-syntax={JPEG}"
    assert head["content-location"] == f"{served.root}{path}/frames/1"
    for accept in (None, f"multipart/related; type=application/octet-stream; transfer-syntax={EXPLICIT}"):
        ((_, body),) = served.get(f"{path}/frames/1", **({"accept": accept} if accept else {})).parts
        assert len(body) == ROWS * COLUMNS
        assert np.abs(np.frombuffer(body, "u1").astype(int) - GREY.ravel()).max() <= 16


@pytest.mark.parametrize(
    ("syntax", "kind"),
    [(EXPLICIT, "application/octet-stream"), ("1.2.840.10008.1.2.4.80", "image/jls"),
     ("1.2.840.10008.1.2.4.90", "image/jp2"), ("1.2.840.10008.1.2.4.201", "image/jphc"),
     ("1.2.840.10008.1.2.5", "image/dicom-rle")],
)  # fmt: skip
def test_frames_are_encoded_in_the_lossless_syntaxes(served, syntax, kind):
    path = served.stored(ct())
    accept = f"multipart/related; type={kind}; transfer-syntax={syntax}"
    ((head, body),) = served.get(f"{path}/frames/1", Accept=accept).parts
    assert head["content-type"] == f"{kind}; transfer-syntax={syntax}"
    if kind in ("image/jp2", "image/jphc"):
        assert np.array_equal(imagecodecs.jpeg2k_decode(body), GREY)
    elif kind == "image/jls":
        assert np.array_equal(imagecodecs.jpegls_decode(body), GREY)
    elif kind == "application/octet-stream":
        assert body == GREY.tobytes()


def test_lossy_syntaxes_are_not_encoded(served):
    path = served.stored(ct())
    for syntax in ("50", "51", "53", "55", "81", "91"):
        accept = f"multipart/related; type=image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.{syntax}"
        assert served.get(f"{path}/frames/1", Accept=accept).status == 406


def test_frames_in_many_fragments_are_whole(served):
    """No offset table: a frame ends with the fragment that ends its JPEG."""
    pieces = [CODESTREAM[at : at + 400] for at in range(0, len(CODESTREAM) - 400, 400)]
    pieces.append(CODESTREAM[400 * len(pieces) :])
    path = served.stored(jpeg(2, pieces * 2))
    accept = f"multipart/related; type=image/jpeg; transfer-syntax={JPEG}"
    for frames in ("1", "2", "1,2", "2,1"):
        parts = served.get(f"{path}/frames/{frames}", Accept=accept).parts
        assert [body.rstrip(b"\0") for _, body in parts] == [CODESTREAM.rstrip(b"\0")] * len(
            frames.split(",")
        )


def test_native_ybr_full_422_frames_have_their_own_length(served):
    path = served.stored(
        make_object(
            "2.25.7.1",
            "2.25.7",
            "2.25.7.3",
            pixels=b"\x80" * (10 * 12 * 2 * 2),
            rows=10,
            columns=12,
            frames=2,
            extra=[
                (0x00280002, element(0x00280002, "US", 3)),
                (0x00280004, element(0x00280004, "CS", "YBR_FULL_422")),
                (0x00280006, element(0x00280006, "US", 0)),
            ],
        )
    )
    assert served.get(f"{path}/metadata").rows[0]["00280004"]["Value"] == ["YBR_FULL_422"]
    for _, body in served.get(f"{path}/frames/1,2").parts:
        assert len(body) in (10 * 12 * 2, 10 * 12 * 3)
    assert served.get(f"{path}/frames/3").status == 404


# --- WADO-RS: rendered ---------------------------------------------------------------------------------


def test_each_frame_is_rendered_and_the_first_stands_for_all(served):
    frames = b"".join(bytes([value]) * (ROWS * COLUMNS) for value in (10, 120, 240))
    path = served.stored(
        make_object(
            "2.25.7.1",
            "2.25.7",
            "2.25.7.3",
            pixels=frames,
            rows=ROWS,
            columns=COLUMNS,
            frames=3,
            extra=[
                (0x00281050, element(0x00281050, "DS", "128")),
                (0x00281051, element(0x00281051, "DS", "256")),
            ],
        )
    )
    found = [served.get(f"{path}/frames/{number}/rendered") for number in (1, 2, 3)]
    assert [answer.image.getpixel((5, 5)) for answer in found] == pytest.approx([10, 120, 240], abs=2)
    assert found[0].image.size == (COLUMNS, ROWS)
    assert served.get(f"{path}/rendered").body == found[0].body
    assert served.get(f"{path}/frames/0/rendered").status == 400
    assert served.get(f"{path}/frames/4/rendered").status == 404


def test_series_and_studies_are_rendered_a_part_for_each_image(served):
    for number in (1, 2):
        path = served.stored(ct(number))
    one = served.get(path.replace(".3.2", ".3.1") + "/rendered", Accept="image/jpeg")
    for above in ("/studies/2.25.2/series/2.25.2.3", "/studies/2.25.2"):
        parts = served.get(f"{above}/rendered").parts
        assert len(parts) == 2
        assert parts[0][1] == one.body
        assert Image.open(io.BytesIO(served.get(f"{above}/thumbnail").body)).mode == "L"


@pytest.mark.parametrize("function", ["linear", "linear-exact", "sigmoid"])
@pytest.mark.parametrize(("center", "width"), [(127, 256), (16, 128), (0, 256)])
def test_the_window_that_is_asked_for_is_applied_to_each_frame_with_its_own_rescale(
    served, function, center, width
):
    """Four frames of four values; slope and intercept are in the functional groups of each."""

    def group(slope: str, intercept: str) -> bytes:
        inner = (
            element(0x00281052, "DS", intercept)
            + element(0x00281053, "DS", slope)
            + element(0x00281054, "LO", "US")
        )
        return sequence(0x00289145, [inner])

    def tone(value: float) -> float:
        if function == "sigmoid":
            return 255 / (1 + math.exp(-4 * (value - center) / width))
        middle, span = (center - 0.5, width - 1) if function == "linear" else (center, width)
        return min(255.0, max(0.0, ((value - middle) / span + 0.5) * 255))

    rescales = [(1, 0), (1, 100), (2, 0), (2, 100)]
    groups = sequence(0x52009230, [group(str(slope), str(intercept)) for slope, intercept in rescales])
    path = served.stored(make_object(
        "2.25.7.1", "2.25.7", "2.25.7.3", pixels=b"\x00\x10\x20\x30" * 4, rows=2, columns=2, frames=4,
        sop_class="1.2.840.10008.5.1.4.1.1.2.1", extra=[(0x52009230, groups)],
    ))  # fmt: skip
    for number, (slope, intercept) in enumerate(rescales, 1):
        query = f"window={center},{width},{function}"
        image = served.get(f"{path}/frames/{number}/rendered?{query}", Accept="image/png").image
        expected = [tone(slope * value + intercept) for value in (0, 0x10, 0x20, 0x30)]
        assert np.asarray(image).ravel().tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("compressed", [False, True])
def test_sixteen_bits_of_each_colour_are_rendered(served, compressed):
    wide = COLOUR.astype("<u2") * 257
    stack = np.stack([wide, wide[::-1], wide])
    extra = [
        (0x00280002, element(0x00280002, "US", 3)),
        (0x00280004, element(0x00280004, "CS", "RGB")),
        (0x00280006, element(0x00280006, "US", 0)),
        (0x00280100, element(0x00280100, "US", 16)),
        (0x00280101, element(0x00280101, "US", 16)),
        (0x00280102, element(0x00280102, "US", 15)),
    ]
    given: dict[str, Any] = {"pixels": stack.tobytes()}
    if compressed:
        from pydicom.pixels.encoders import RLELosslessEncoder

        frames = [
            RLELosslessEncoder.encode(
                frame.tobytes(), rows=ROWS, columns=COLUMNS, samples_per_pixel=3, bits_allocated=16,
                bits_stored=16, pixel_representation=0, photometric_interpretation="RGB",
                number_of_frames=1, planar_configuration=0,
            )
            for frame in stack
        ]  # fmt: skip
        given = {"fragments": frames, "transfer_syntax": "1.2.840.10008.1.2.5"}
    path = served.stored(make_object(
        "2.25.7.1", "2.25.7", "2.25.7.3", rows=ROWS, columns=COLUMNS, frames=3, extra=extra, **given
    ))  # fmt: skip
    image = served.get(f"{path}/frames/2/rendered", Accept="image/png").image
    assert np.array_equal(np.asarray(image), COLOUR[::-1])
    assert served.get(f"{path}/frames/3/rendered").image.format == "JPEG"

"""The Native DICOM Model beside DICOM JSON: there and back, hostile XML, and DCMTK's dcm2xml as the judge."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from hilum import _dicomjson
from hilum.dicom.xml import NAMESPACE, from_xml, to_xml
from hilum.engine import prepare, record
from hilum.errors import BadDicom, NotDicom


def native(attributes: str) -> bytes:
    return (
        f'<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">{attributes}</NativeDicomModel>'.encode()
    )


ATTRIBUTES: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    (
        '<DicomAttribute tag="00080005" vr="CS" keyword="SpecificCharacterSet">'
        '<Value number="1">ISO_IR 192</Value></DicomAttribute>',
        {"00080005": {"vr": "CS", "Value": ["ISO_IR 192"]}},
    ),
    (
        '<DicomAttribute tag="00100020" vr="LO" keyword="PatientID"></DicomAttribute>',
        {"00100020": {"vr": "LO"}},
    ),
    (
        '<DicomAttribute tag="00080008" vr="CS" keyword="ImageType"><Value number="1">A</Value>'
        '<Value number="2"/><Value number="3">B &amp; &lt;C&gt;&quot;&#13;\n</Value></DicomAttribute>',
        {"00080008": {"vr": "CS", "Value": ["A", None, 'B & <C>"\r\n']}},
    ),
    (
        '<DicomAttribute tag="00100010" vr="PN" keyword="PatientName"><PersonName number="1"><Alphabetic>'
        "<FamilyName>Yamada</FamilyName><GivenName>Tarou</GivenName><NameSuffix>Jr^x</NameSuffix></Alphabetic>"
        "<Ideographic><FamilyName>山田</FamilyName></Ideographic></PersonName></DicomAttribute>",
        {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "Yamada^Tarou^^^Jr^x", "Ideographic": "山田"}]}},
    ),
    (
        '<DicomAttribute tag="00081140" vr="SQ" keyword="ReferencedImageSequence"><Item number="1">'
        '<DicomAttribute tag="00081150" vr="UI" keyword="ReferencedSOPClassUID"><Value number="1">1.2</Value>'
        '</DicomAttribute></Item><Item number="2"></Item></DicomAttribute>',
        {"00081140": {"vr": "SQ", "Value": [{"00081150": {"vr": "UI", "Value": ["1.2"]}}, {}]}},
    ),
    (
        '<DicomAttribute tag="00180050" vr="DS" keyword="SliceThickness"><Value number="1">1.5</Value>'
        '<Value number="2">1,5</Value><Value number="3">nan</Value></DicomAttribute>'
        '<DicomAttribute tag="00280010" vr="US" keyword="Rows"><Value number="1">512</Value>'
        "</DicomAttribute>",
        {"00180050": {"vr": "DS", "Value": [1.5, "1,5", "nan"]}, "00280010": {"vr": "US", "Value": [512]}},
    ),
    (
        '<DicomAttribute tag="00282000" vr="OB" keyword="ICCProfile"><InlineBinary>AAEC</InlineBinary>'
        '</DicomAttribute><DicomAttribute tag="7FE00010" vr="OW" keyword="PixelData">'
        '<BulkData uri="http://h/a?b&amp;c"/></DicomAttribute>',
        {
            "00282000": {"vr": "OB", "InlineBinary": "AAEC"},
            "7FE00010": {"vr": "OW", "BulkDataURI": "http://h/a?b&c"},
        },
    ),
    (
        '<DicomAttribute tag="00090010" vr="LO"><Value number="1">ACME</Value></DicomAttribute>'
        '<DicomAttribute tag="00090011" vr="LO"><Value number="1">B &lt;1&gt;</Value></DicomAttribute>'
        '<DicomAttribute tag="00090001" vr="LO" privateCreator="ACME"><Value number="1">a</Value>'
        '</DicomAttribute><DicomAttribute tag="00090001" vr="LO" privateCreator="B &lt;1&gt;">'
        '<Value number="1">b</Value>'
        '</DicomAttribute><DicomAttribute tag="00091201" vr="UN"></DicomAttribute>',
        {
            "00090010": {"vr": "LO", "Value": ["ACME"]},
            "00090011": {"vr": "LO", "Value": ["B <1>"]},
            "00091001": {"vr": "LO", "Value": ["a"]},
            "00091101": {"vr": "LO", "Value": ["b"]},
            "00091201": {"vr": "UN"},
        },
    ),
]


@pytest.mark.parametrize(("attributes", "document"), ATTRIBUTES)
def test_a_data_set_is_this_document_and_the_other_way_round(attributes, document):
    xml = to_xml(document)

    assert xml.split(b"\n", 1)[1].rstrip(b"\n") == native(attributes)
    assert from_xml(xml) == document
    assert from_xml(native(attributes).replace(f' xmlns="{NAMESPACE}"'.encode(), b"")) == document


def test_what_xml_cannot_hold_is_replaced_and_the_rest_stays():
    text = "a\x00\x1b\x7f\ufffe\ud800\U0001f600\t"

    found = from_xml(to_xml({"00100020": {"vr": "LO", "Value": [text]}}))

    assert found["00100020"]["Value"] == ["a\ufffd\ufffd\x7f\ufffd\ufffd\U0001f600\t"]


def test_of_two_blocks_of_one_creator_each_element_stays():
    document = {
        "00090010": {"vr": "LO", "Value": ["ACME"]},
        "00090011": {"vr": "LO", "Value": ["ACME"]},
        "00091001": {"vr": "LO", "Value": ["a"]},
        "00091101": {"vr": "LO", "Value": ["b"]},
    }

    assert from_xml(to_xml(document)) == document


def test_private_elements_without_their_creators_get_blocks_of_their_own():
    attributes = "".join(
        f'<DicomAttribute tag="00090002" vr="LO" privateCreator="{creator}">'
        f'<Value number="1">{creator}</Value></DicomAttribute>'
        for creator in ("ONE", "TWO")
    )

    assert from_xml(native(attributes)) == {
        "00090010": {"vr": "LO", "Value": ["ONE"]},
        "00090011": {"vr": "LO", "Value": ["TWO"]},
        "00091002": {"vr": "LO", "Value": ["ONE"]},
        "00091102": {"vr": "LO", "Value": ["TWO"]},
    }


def test_a_block_with_elements_of_nobody_is_given_to_nobody():
    attributes = (
        '<DicomAttribute tag="00091001" vr="LO"><Value number="1">whose</Value></DicomAttribute>'
        '<DicomAttribute tag="00090001" vr="LO" privateCreator="ONE"><Value number="1">one</Value>'
        "</DicomAttribute>"
    )

    found = from_xml(native(attributes))

    assert (found["00091001"]["Value"], found["00091101"]["Value"]) == (["whose"], ["one"])


def test_values_may_leave_numbers_out():
    attributes = '<DicomAttribute tag="00080008" vr="CS"><Value number="3">C</Value></DicomAttribute>'

    assert from_xml(native(attributes))["00080008"]["Value"] == [None, None, "C"]


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"\xff\xfe",
        b"no xml",
        b"<NativeDicomModel>",
        b"<html/>",
        native("<Value/>"),
        native('<DicomAttribute tag="0010" vr="LO"/>'),
        native('<DicomAttribute tag="00100020" vr="LONG"/>'),
        native('<DicomAttribute vr="LO"/>'),
        native('<DicomAttribute tag="00100020" vr="LO"><Item number="1"/></DicomAttribute>'),
        native('<DicomAttribute tag="00081140" vr="SQ"><Value number="1">x</Value></DicomAttribute>'),
        native('<DicomAttribute tag="00100020" vr="LO"><Value number="0"/></DicomAttribute>'),
        native('<DicomAttribute tag="00100020" vr="LO"><Value number="99999999"/></DicomAttribute>'),
        native('<DicomAttribute tag="00100020" vr="LO"><Value number="x"/></DicomAttribute>'),
        native('<DicomAttribute tag="00282000" vr="OB"><BulkData/></DicomAttribute>'),
        native('<DicomAttribute tag="00081140" vr="SQ"><Item number="1">' * 200),
        native('<DicomAttribute tag="00081140" vr="SQ"><Item>' * 200 + "</Item></DicomAttribute>" * 200),
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><NativeDicomModel/>',
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><NativeDicomModel/>',
        native(
            '<DicomAttribute tag="00100020" vr="LO"><Value number="1">'
            + "x" * 11_000_000
            + "</Value></DicomAttribute>"
        ),
    ],
    ids=range(20),
)
def test_what_is_no_native_dicom_model_is_refused(xml):
    with pytest.raises(BadDicom):
        from_xml(xml)


def test_no_entity_is_resolved():
    bomb = (
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;">]>'
        + native(
            '<DicomAttribute tag="00100020" vr="LO"><Value number="1">&b;</Value></DicomAttribute>'
        ).decode()
    )

    with pytest.raises(BadDicom, match="document type"):
        from_xml(bomb.encode())


def documents(files: dict[str, Path]) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for path in files.values():
        try:
            head = record.unpack_head(prepare.prepare(memoryview(path.read_bytes())).payload)
        except (BadDicom, NotDicom):
            continue
        data, holes, at = head.head, head.holes, head.data_set_at
        if head.flags & record.DEFLATED:
            data, holes, at = head.inflated, head.inflated_holes, 0
        implicit, big = bool(head.flags & record.IMPLICIT_VR), bool(head.flags & record.BIG_ENDIAN)
        found.append((path, json.loads(_dicomjson.write(data, holes, at, implicit, big, uri_prefix=b"u/"))))
    return found


def printable(found: Any) -> Any:
    """A document without what XML can't hold, and without the empty components at the end of names."""
    if isinstance(found, dict):
        plain = {key: printable(value) for key, value in found.items()}
        return {"vr": "PN"} if plain.get("Value") == [{"Alphabetic": ""}] else plain
    if isinstance(found, list):
        return [printable(value) for value in found]
    if not isinstance(found, str):
        return found
    return "".join(c if c >= " " or c in "\t\n\r" else "\ufffd" for c in found).rstrip("^")


def test_every_sample_file_goes_there_and_back(sample_files):
    for path, document in documents(sample_files):
        expected = printable(document)
        found = printable(from_xml(to_xml(document)))
        assert found == expected, path


# --- DCMTK ------------------------------------------------------------------------------------


def canonical(xml: bytes) -> dict[str, Any]:
    """What both writers must say alike: VRs, private creators, values, names; numbers as numbers."""

    def texts(element: Any) -> Any:
        vr, found = element.get("vr"), []
        for child in element:
            name = etree.QName(child).localname
            if name == "Item":
                found.append(data_set(child))
            elif name == "Value":
                text = child.text or ""
                found.append(f"{float(text):.7g}" if vr in ("DS", "FD", "FL", "IS") else text)
            elif name == "PersonName":
                found.append(
                    {
                        f"{etree.QName(part).localname}.{etree.QName(one).localname}": one.text
                        for part in child
                        for one in part
                    }
                )
            else:
                found.append("bytes")
        return found

    def data_set(parent: Any) -> dict[str, Any]:
        return {
            f"{one.get('tag')} {one.get('vr')} {one.get('privateCreator', '')}": texts(one)
            for one in parent
            if one.get("tag") != "00080005" and not one.get("tag").endswith("0000") and is_owned(one)
        }

    def is_owned(one: Any) -> bool:
        """Not a private element without a creator, which DCMTK tells by a tag that nobody can read back."""
        private = int(one.get("tag")[:4], 16) & 1 and one.get("tag")[4:7] != "001"
        return not private or one.get("privateCreator") is not None

    return data_set(etree.fromstring(xml, etree.XMLParser(huge_tree=True, recover=True)))


@pytest.mark.peers
@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "rtplan.dcm",
        "test-SR.dcm",
        "JPEG2000.dcm",
        "waveform_ecg.dcm",
    ],
)
def test_dcm2xml_says_the_same(name, pydicom_files):
    if shutil.which("dcm2xml") is None:
        pytest.skip("dcm2xml is not installed (Debian: dcmtk)")
    path = next(path for found, path in pydicom_files.items() if found.endswith(name))
    run = subprocess.run(["dcm2xml", "-nat", "+Xn", str(path)], capture_output=True, check=True)
    ((_, document),) = documents({name: path})

    # The character set is ours alone. DCMTK keeps all bytes out of its document.
    assert canonical(to_xml(document)) == canonical(run.stdout)

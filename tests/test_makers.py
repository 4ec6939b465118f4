"""The made objects are what pydicom reads them as: tests that lean on them lean on DICOM."""

from __future__ import annotations

import io

import pydicom
from makers import IMPLICIT_LE, element, encapsulated, make_object, noise, sequence
from pydicom.encaps import generate_fragments


def read(data):
    return pydicom.dcmread(io.BytesIO(data))


def test_a_made_object_reads_back_as_what_was_asked_for():
    pixels = noise(6 * 7, seed=1)
    found = read(make_object("2.25.1", "2.25.2", "2.25.3", pixels=pixels, rows=6, columns=7, name="Ada^B"))

    assert found.file_meta.MediaStorageSOPInstanceUID == found.SOPInstanceUID == "2.25.1"
    assert (found.StudyInstanceUID, found.SeriesInstanceUID) == ("2.25.2", "2.25.3")
    assert found.PatientName == "Ada^B"
    assert (found.Rows, found.Columns, found.BitsAllocated) == (6, 7, 8)
    assert found.PixelData == pixels


def test_implicit_vr_says_the_same_as_explicit_vr():
    plain = read(make_object("2.25.1", "2.25.2", "2.25.3", pixels=b"12345678", bits=16))
    implicit = read(
        make_object("2.25.1", "2.25.2", "2.25.3", pixels=b"12345678", bits=16, transfer_syntax=IMPLICIT_LE)
    )

    assert implicit.file_meta.TransferSyntaxUID == IMPLICIT_LE
    assert plain.to_json_dict() == implicit.to_json_dict()


def test_fragments_come_back_one_by_one():
    found = read(make_object("2.25.1", "2.25.2", "2.25.3", fragments=[b"ab", b"cde"]))

    assert list(generate_fragments(found.PixelData)) == [b"", b"ab", b"cde\0"]
    assert encapsulated([b"ab", b"cde"]).endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")


def test_extra_elements_lie_in_their_place_and_take_the_place_of_others():
    extra = [
        (0x00100020, element(0x00100020, "LO", "OTHER")),
        (0x00081140, sequence(0x00081140, [element(0x00081155, "UI", "2.25.9")])),
    ]
    found = read(make_object("2.25.1", "2.25.2", "2.25.3", extra=extra))

    assert found.PatientID == "OTHER"
    assert found.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "2.25.9"
    assert [e.tag for e in found] == sorted(e.tag for e in found)


def test_the_same_arguments_give_the_same_bytes():
    assert make_object("2.25.1", "2.25.2", "2.25.3", pixels=noise(64, 3)) == make_object(
        "2.25.1", "2.25.2", "2.25.3", pixels=noise(64, 3)
    )
    assert noise(64, 3) != noise(64, 4)

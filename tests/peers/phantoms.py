"""Made studies whose every pixel is known: takes nothing; gives Part 10 files as pydicom writes them, and
what a person must see of each. Nothing of Hilum is used here.

What is to be seen is windowed by numpy, PS3.3 C.11.2.1.2.1 (Default LINEAR Function), out of the pixels that
pydicom decodes. Where pydicom has no free decoder for a lossless syntax, they are those of the same object in
Explicit VR Little Endian.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import dcmwrite

Picture = npt.NDArray[np.uint8]  # rows by columns, or rows by columns by 3
Array = npt.NDArray[Any]

ROWS, COLUMNS = 192, 256  # not square: a picture on its side is another one
CENTER, WIDTH = 40.0, 400.0
SLOPE, INTERCEPT = 1.0, -1024.0
FRAMES = 6
SLIDE_TILE, SLIDE_ROWS, SLIDE_COLUMNS = 128, 384, 512

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
US_MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.3.1"
SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
PDF = "1.2.840.10008.5.1.4.1.1.104.1"

HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL, HTJ2K = (f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203))


class Phantom(NamedTuple):
    """One object, and what is to be seen of it."""

    name: str
    study: str
    series: str
    instance: str
    data: bytes  # the file
    pictures: Sequence[Picture] = ()  # one for each frame
    tolerance: float = 0.5  # mean difference of grey levels that a canvas may have


def _uid(*path: int) -> str:
    return ".".join(["1.2.826.0.1.3680043.8.498.77", *map(str, path)])


def windowed(values: Array, center: float = CENTER, width: float = WIDTH) -> Picture:
    """What a window makes of values: PS3.3 C.11.2.1.2.1, Default LINEAR Function."""
    found = ((values.astype(np.float64) - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def body(shift: int = 0) -> npt.NDArray[np.int16]:
    """Hounsfield units of something round with insides, alike in no direction. Smooth: it is seen scaled."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS].astype(np.float64)

    def blob(row: float, column: float, height: float, width: float, value: float) -> Array:
        return value * np.exp(-(((y - row) / height) ** 2 + ((x - column) / width) ** 2))

    values = -400 + blob(100, 120, 70, 95, 480)
    values += blob(70, 70 + 8 * shift, 16, 22, 160) - blob(120, 165, 22, 18, 210) + blob(150, 90, 14, 14, 240)
    values += 0.35 * x - 0.2 * y
    return np.rint(values).astype(np.int16)


def _identified(ds: Dataset, study: int, series: int, number: int, modality: str, title: str) -> Dataset:
    ds.PatientName = "Phantom^Bright"
    ds.PatientID = f"PH{study}"
    ds.PatientBirthDate = "19700101"
    ds.PatientSex = "O"
    ds.StudyInstanceUID = _uid(study)
    ds.SeriesInstanceUID = _uid(study, series)
    ds.SOPInstanceUID = _uid(study, series, number)
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = f"202401{study:02d}"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "101500"
    ds.StudyID = str(study)
    ds.AccessionNumber = f"A{study}"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = title
    ds.SeriesDescription = title
    ds.SeriesNumber = series
    ds.InstanceNumber = number
    ds.Modality = modality
    ds.FrameOfReferenceUID = _uid(study, 0)
    return ds


def _file(ds: Dataset, sop_class: str, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    ds.SOPClassUID = sop_class
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.UID(sop_class)
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = uid.UID(syntax)
    meta.ImplementationClassUID = uid.UID("2.25.77")
    ds.file_meta = meta
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        return _deflated(ds, meta)
    buffer = DicomBytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def _deflated(ds: Dataset, meta: FileMetaDataset) -> bytes:
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    plain = _file(ds, str(ds.SOPClassUID))
    begin = (
        144
        + pydicom.dcmread(io.BytesIO(plain), stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    )
    meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    head = DicomBytesIO()
    head.write(b"\0" * 128 + b"DICM")
    pydicom.filewriter.write_file_meta_info(head, meta)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(plain[begin:]) + packer.flush()
    return head.getvalue() + packed + b"\0" * (len(packed) % 2)


def _grey(ds: Dataset, bits: int, stored: int, *, signed: bool) -> None:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = ROWS, COLUMNS
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, stored, stored - 1
    ds.PixelRepresentation = int(signed)


def _ct(
    study: int, series: int, number: int, title: str, values: Array, bits: int = 16, stored: int = 16
) -> Dataset:
    ds = _identified(Dataset(), study, series, number, "CT", title)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient = [0, 0, 2.5 * number]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [0.7, 0.7]
    ds.SliceThickness = 2.5
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = SLOPE, INTERCEPT, "HU"
    ds.WindowCenter, ds.WindowWidth = CENTER, WIDTH
    _grey(ds, bits, stored, signed=False)
    ds.PixelData = values.astype("<u2" if bits == 16 else np.uint8).tobytes()
    ds["PixelData"].VR = "OW" if bits == 16 else "OB"
    return ds


def stack() -> list[Phantom]:
    """A CT series of seven slices."""
    found = []
    for number in range(1, 8):
        ds = _ct(1, 1, number, "Stack", body(number) - int(INTERCEPT))
        found.append(_phantom(f"slice {number}", ds, _file(ds, CT)))
    return found


def _phantom(
    name: str, ds: Dataset, data: bytes, *, oracle: bytes | None = None, tolerance: float = 0.5
) -> Phantom:
    """With the pictures that pydicom's pixels make, out of this file or of another with the same pixels."""
    read = pydicom.dcmread(io.BytesIO(oracle or data))
    pixels = read.pixel_array
    frames = pixels if int(read.get("NumberOfFrames", 1)) > 1 else [pixels]
    if read.SamplesPerPixel == 3:
        pictures = [np.asarray(frame, np.uint8) for frame in frames]
    else:
        pictures = [
            windowed(frame * float(read.RescaleSlope) + float(read.RescaleIntercept), *_window(read))
            for frame in frames
        ]
    ids = str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID)
    return Phantom(name, *ids, data, pictures, tolerance)


def _window(ds: Dataset) -> tuple[float, float]:
    return float(ds.WindowCenter), float(ds.WindowWidth)


class Syntax(NamedTuple):
    """A transfer syntax, and how a frame gets into it."""

    uid: str
    encode: Callable[[Array], bytes] | None  # None: native, or pydicom does it
    tolerance: float = 0.5
    bits: int = 16
    by_pydicom: bool = True  # whether it can be decoded by what the tests have of pydicom's decoders


def _jpeg(values: Array, **how: Any) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(values, **how))


def _jpeg_2000(values: Array, **how: Any) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(values, codecformat="j2k", bitspersample=12, resolutions=5, **how))


# A lossy one may differ by what two decoders make of the same bytes; where pydicom has none, by what is lost.
SYNTAXES = (
    Syntax(uid.ImplicitVRLittleEndian, None),
    Syntax(uid.ExplicitVRBigEndian, None),
    Syntax(uid.DeflatedExplicitVRLittleEndian, None),
    Syntax(uid.RLELossless, None),
    Syntax(uid.JPEGBaseline8Bit, lambda v: _jpeg(v, level=95), 1.0, 8),
    Syntax(uid.JPEGExtended12Bit, lambda v: _jpeg(v, level=95, bitspersample=12), 5.0, by_pydicom=False),
    Syntax(
        uid.JPEGLossless, lambda v: _jpeg(v, lossless=True, predictor=6, bitspersample=12), by_pydicom=False
    ),
    Syntax(
        uid.JPEGLosslessSV1,
        lambda v: _jpeg(v, lossless=True, predictor=1, bitspersample=12),
        by_pydicom=False,
    ),
    Syntax(uid.JPEGLSLossless, lambda v: bytes(imagecodecs.jpegls_encode(v)), by_pydicom=False),
    Syntax(
        uid.JPEGLSNearLossless, lambda v: bytes(imagecodecs.jpegls_encode(v, level=2)), 1.0, by_pydicom=False
    ),
    Syntax(uid.JPEG2000Lossless, lambda v: _jpeg_2000(v, level=0, reversible=True)),
    Syntax(uid.JPEG2000, lambda v: _jpeg_2000(v, level=65), 1.0),
    Syntax(HTJ2K_LOSSLESS, lambda v: bytes(imagecodecs.htj2k_encode(v, reversible=True))),
    Syntax(HTJ2K_LOSSLESS_RPCL, lambda v: bytes(imagecodecs.htj2k_encode(v, reversible=True, tlm=True))),
    Syntax(HTJ2K, lambda v: bytes(imagecodecs.htj2k_encode(v, reversible=True))),
)


def syntaxes() -> list[Phantom]:
    """A series whose slices are in all transfer syntaxes, one in each."""
    found = []
    for number, syntax in enumerate(SYNTAXES, 1):
        values = body(number) - int(INTERCEPT)
        if syntax.bits == 8:
            values = np.clip((body(number) + 500) // 4, 0, 255)

        def made(number: int = number, values: Array = values, bits: int = syntax.bits) -> Dataset:
            ds = _ct(2, 1, number, "Transfer syntaxes", values, bits, 8 if bits == 8 else 12)
            if bits == 8:
                ds.RescaleSlope, ds.RescaleIntercept = 4, -500
            return ds

        native = made()
        oracle = _file(native, CT)
        ds = made()
        if syntax.uid == uid.RLELossless:
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
            ds.compress(uid.RLELossless, generate_instance_uid=False)
        elif syntax.uid == uid.ExplicitVRBigEndian:
            ds.PixelData = values.astype(">u2").tobytes()
        elif syntax.encode is not None:
            coded = syntax.encode(values.astype(np.uint8 if syntax.bits == 8 else np.uint16))
            ds.PixelData = encapsulate([coded])
            ds["PixelData"].VR = "OB"
        data = _file(ds, CT, syntax.uid)
        name = uid.UID(syntax.uid).name
        found.append(
            _phantom(name, ds, data, oracle=None if syntax.by_pydicom else oracle, tolerance=syntax.tolerance)
        )
    return found


def ultrasound() -> list[Phantom]:
    """A multi-frame in colour, JPEG with halved chroma, as scanners send it."""
    ds = _identified(Dataset(), 3, 1, 1, "US", "Loop")
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.SamplesPerPixel, ds.PlanarConfiguration = 3, 0
    ds.PhotometricInterpretation = "YBR_FULL_422"
    ds.Rows, ds.Columns = ROWS, COLUMNS
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.NumberOfFrames = FRAMES
    ds.FrameTime = "40"
    ds.FrameIncrementPointer = pydicom.tag.Tag("FrameTime")
    frames = []
    for index in range(FRAMES):
        grey = windowed(body(index), 0, 700).astype(np.float64)
        y, x = np.mgrid[0:ROWS, 0:COLUMNS]
        colour = np.stack([grey, 0.8 * grey + 0.1 * x, 255 - 0.6 * grey - 0.2 * y], axis=-1)
        frames.append(np.clip(colour, 0, 255).astype(np.uint8))
    ds.PixelData = encapsulate([_jpeg(frame, level=92, subsampling="422") for frame in frames])
    ds["PixelData"].VR = "OB"
    data = _file(ds, US_MULTI_FRAME, uid.JPEGBaseline8Bit)
    return [_phantom("loop", ds, data)]


def enhanced_mr() -> list[Phantom]:
    """An Enhanced MR Image: window, slope and place are in functional groups, others in each frame."""
    ds = _identified(Dataset(), 4, 1, 1, "MR", "Enhanced")
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    ds.NumberOfFrames = FRAMES
    _grey(ds, 16, 12, signed=False)
    stored, pictures = [], []
    organization = Dataset()
    organization.DimensionOrganizationUID = _uid(4, 9)
    ds.DimensionOrganizationSequence = [organization]
    pointer = Dataset()
    pointer.DimensionOrganizationUID = _uid(4, 9)
    pointer.DimensionIndexPointer = pydicom.tag.Tag("InStackPositionNumber")
    pointer.FunctionalGroupPointer = pydicom.tag.Tag("FrameContentSequence")
    ds.DimensionIndexSequence = [pointer]
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.9, 0.9]
    shared.PixelMeasuresSequence[0].SliceThickness = 3
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for index in range(FRAMES):
        slope, center, width = 0.5 + 0.25 * index, 500.0 + 100 * index, 900.0 + 150 * index
        values = np.clip(body(index) + 600, 0, 4095)
        stored.append(values.astype("<u2"))
        pictures.append(windowed(values * slope, center, width))
        group = Dataset()
        group.FrameContentSequence = [Dataset()]
        group.FrameContentSequence[0].StackID = "1"
        group.FrameContentSequence[0].InStackPositionNumber = index + 1
        group.FrameContentSequence[0].DimensionIndexValues = [index + 1]
        group.PlanePositionSequence = [Dataset()]
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 3 * index]
        group.FrameVOILUTSequence = [Dataset()]
        group.FrameVOILUTSequence[0].WindowCenter = center
        group.FrameVOILUTSequence[0].WindowWidth = width
        group.PixelValueTransformationSequence = [Dataset()]
        group.PixelValueTransformationSequence[0].RescaleIntercept = 0
        group.PixelValueTransformationSequence[0].RescaleSlope = slope
        group.PixelValueTransformationSequence[0].RescaleType = "US"
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    ds.PixelData = np.stack(stored).tobytes()
    ds["PixelData"].VR = "OW"
    data = _file(ds, ENHANCED_MR)
    assert np.array_equal(pydicom.dcmread(io.BytesIO(data)).pixel_array, np.stack(stored))
    ids = str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID)
    return [Phantom("enhanced", *ids, data, pictures)]


def tissue() -> Picture:
    """A slide in one piece: something violet on a light ground, alike in no direction."""
    y, x = np.mgrid[0:SLIDE_ROWS, 0:SLIDE_COLUMNS].astype(np.float64)
    ground = np.full((SLIDE_ROWS, SLIDE_COLUMNS, 3), 236.0)
    for row, column, size, colour in (
        (120, 130, 80, (150, 40, 140)),
        (250, 330, 110, (190, 70, 120)),
        (90, 420, 50, (60, 50, 150)),
        (310, 90, 45, (40, 130, 90)),
    ):
        weight = np.exp(-((((y - row) / size) ** 2 + ((x - column) / size) ** 2) ** 2))[..., None]
        ground = ground * (1 - weight) + np.array(colour) * weight
    return ground.astype(np.uint8)


def slide() -> list[Phantom]:
    """A whole slide in two levels of JPEG tiles, TILED_FULL."""
    whole = tissue()
    levels = [
        whole,
        whole.reshape(SLIDE_ROWS // 2, 2, SLIDE_COLUMNS // 2, 2, 3).mean((1, 3)).astype(np.uint8),
    ]
    found = []
    for number, level in enumerate(levels, 1):
        rows, columns = level.shape[:2]
        ds = _identified(Dataset(), 5, 1, number, "SM", "Slide")
        ds.ImageType = [
            "DERIVED" if number > 1 else "ORIGINAL",
            "PRIMARY",
            "VOLUME",
            "RESAMPLED" if number > 1 else "NONE",
        ]
        ds.SamplesPerPixel, ds.PlanarConfiguration = 3, 0
        ds.PhotometricInterpretation = "YBR_FULL_422"
        ds.Rows = ds.Columns = SLIDE_TILE
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        ds.LossyImageCompression = "01"
        ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = rows, columns
        ds.TotalPixelMatrixFocalPlanes = 1
        ds.ImagedVolumeWidth, ds.ImagedVolumeHeight, ds.ImagedVolumeDepth = 5.12, 3.84, 0.001
        ds.DimensionOrganizationType = "TILED_FULL"
        organization = Dataset()
        organization.DimensionOrganizationUID = _uid(5, 9)
        ds.DimensionOrganizationSequence = [organization]
        ds.SpecimenLabelInImage = "NO"
        ds.FocusMethod, ds.ExtendedDepthOfField = "AUTO", "NO"
        ds.VolumetricProperties = "VOLUME"
        ds.ContainerIdentifier = "S1"
        ds.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
        origin = Dataset()
        origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 10, 20
        ds.TotalPixelMatrixOriginSequence = [origin]
        optical = Dataset()
        optical.OpticalPathIdentifier = "1"
        optical.OpticalPathDescription = "Brightfield"
        kind = Dataset()
        kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = (
            "111744",
            "DCM",
            "Brightfield illumination",
        )
        optical.IlluminationTypeCodeSequence = [kind]
        ds.OpticalPathSequence = [optical]
        ds.NumberOfOpticalPaths = 1
        shared = Dataset()
        shared.PixelMeasuresSequence = [Dataset()]
        shared.PixelMeasuresSequence[0].PixelSpacing = [0.01 * number, 0.01 * number]
        shared.PixelMeasuresSequence[0].SliceThickness = 0.001
        shared.OpticalPathIdentificationSequence = [Dataset()]
        shared.OpticalPathIdentificationSequence[0].OpticalPathIdentifier = "1"
        ds.SharedFunctionalGroupsSequence = [shared]
        tiles = []
        for row in range(0, rows, SLIDE_TILE):
            for column in range(0, columns, SLIDE_TILE):
                tile = np.full((SLIDE_TILE, SLIDE_TILE, 3), 236, np.uint8)
                part = level[row : row + SLIDE_TILE, column : column + SLIDE_TILE]
                tile[: part.shape[0], : part.shape[1]] = part
                tiles.append(_jpeg(tile, level=95, subsampling="422"))
        ds.NumberOfFrames = len(tiles)
        ds.PixelData = encapsulate(tiles)
        ds["PixelData"].VR = "OB"
        data = _file(ds, SLIDE, uid.JPEGBaseline8Bit)
        ids = str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID)
        found.append(Phantom(f"level {number}", *ids, data, [level]))
    return found


PDF_COLOUR = (204, 51, 153)


def pdf() -> list[Phantom]:
    """A PDF of one page, all of which is in one colour."""
    red, green, blue = (part / 255 for part in PDF_COLOUR)
    drawing = f"{red:.3f} {green:.3f} {blue:.3f} rg 0 0 300 300 re f".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Contents 4 0 R >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawing), drawing),
    ]
    text = b"%PDF-1.4\n%" + b"-" * 70_000 + b"\n"  # so long that metadata names it by a URI
    places = []
    for number, body_ in enumerate(objects, 1):
        places.append(len(text))
        text += b"%d 0 obj\n%s\nendobj\n" % (number, body_)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    text += end % (len(objects) + 1, table, len(objects) + 1, len(text))
    ds = _identified(Dataset(), 6, 1, 1, "DOC", "Letter")
    ds.ConversionType = "WSD"
    ds.BurnedInAnnotation = "YES"
    ds.DocumentTitle = "Letter"
    ds.ConceptNameCodeSequence = []
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocumentLength = len(text)
    ds.EncapsulatedDocument = text + b"\0" * (len(text) % 2)
    ids = str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID)
    return [Phantom("letter", *ids, _file(ds, PDF))]

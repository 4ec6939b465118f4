"""Matching, case by case: what is stored, what is asked, whether that finds it, and the clause. Data
that every front end is held against; stores and asks nothing itself.

    files()         the objects to store, once, all in one store
    CASES           each with the keys to ask there, and case.expected: is the row of case.unique_key among
                    the answers? Other rows may be too: they belong to other cases.
    REFUSED         questions that make no sense

A group is one study that is stored, and the questions that find it (yes) and don't (no). `stored` are its
instances, each in a series of its own unless they share a Series Instance UID. Keys are NAME=VALUE; several
are joined by " & ". Text that is bytes is already in the object's character set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import pack
from typing import Any, NamedTuple

from makers import element, item, make_object
from pydicom import datadict

Elements = dict[str | tuple[int, str], Any]  # by keyword, or by tag and VR; of a sequence a list of items

SINGLE = "PS3.4 C.2.2.2.1, Single Value Matching"
LIST = "PS3.4 C.2.2.2.2, List of UID Matching"
UNIVERSAL = "PS3.4 C.2.2.2.3, Universal Matching"
WILDCARD = "PS3.4 C.2.2.2.4, Wild Card Matching"
RANGE = "PS3.4 C.2.2.2.5, Range Matching"
SEQUENCE = "PS3.4 C.2.2.2.6, Sequence Matching"
EMPTY = "PS3.4 C.2.2.2.7, Empty Value Matching"
MULTIPLE = "PS3.4 C.2.2.2.8, Multiple Value Matching"
CHARACTERS = "PS3.4 C.2.2.2, Attribute Matching: Specific Character Set"
TIMEZONE = "PS3.4 C.2.2.2, Attribute Matching: Timezone Offset From UTC"
FUZZY = "PS3.4 C.2.2.2.1.1, Attributes of VR of PN: fuzzy semantic matching"
PRIVATE = "PS3.18 8.3.4.1, Attribute Matching: Private Creator"
RELATIONAL = "PS3.4 C.4.1.2.2.1, Relational-Queries"
HIERARCHY = "PS3.4 C.4.1.3.1.1, Hierarchical Search Method"
ATTRIBUTES = "PS3.4 C.3.4, Additional Query/Retrieve Attributes"


class Group(NamedTuple):
    clause: str
    stored: Elements | Sequence[Elements]
    yes: Sequence[str]
    no: Sequence[str] = ()
    level: str = "studies"
    options: dict[str, Any] = {}  # noqa: RUF012  # of Asked


class Case(NamedTuple):
    clause: str
    level: str
    keys: tuple[tuple[str, str], ...]
    options: dict[str, Any]
    unique_key: str  # of the row that is or is not found: a UID, or at "patients" the Patient ID
    expected: bool
    name: str  # for the report of a test


CHEST: Elements = {
    "StudyDescription": "Chest CT",
    "AccessionNumber": "ACC-17",
    "StudyID": "S 1",
    "PatientSex": "F",
}
NUMBERS: Elements = {
    "SeriesNumber": "007",
    "InstanceNumber": "12",
    "SliceThickness": "1.50",
    "WindowCenter": "40\\400",
    "EchoTime": "+5e0",
    "KVP": "120",
    "RepetitionTime": "x",
    "Rows": 512,
    "ImageType": "ORIGINAL\\PRIMARY\\AXIAL",
    "FrameIncrementPointer": pack("<HHHH", 0x0018, 0x1063, 0x0018, 0x1065),
    "BeamOrderIndex": "3",
    "AcquisitionTimeSynchronized": "Y",
    "PatientAge": "045Y",
    "LossyImageCompression": "00",
    "SpacingBetweenSlices": "-0",
    "FocalSpots": "0.6\\1.2",
}
UIDS: Elements = {"FrameOfReferenceUID": "2.25.77.1", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}
DATED: Elements = {
    "StudyDate": "20240229",
    "StudyTime": "103000.5",
    "SeriesDate": "2024.03.01",
    "SeriesTime": "10",
    "AcquisitionDateTime": "20240229103000.250000+0100",
    "PatientBirthDate": "19700102",
    "ContentDate": "unknown",
    "ContentTime": "235960",
    "DateOfSecondaryCapture": "20240305",
    "TimeOfSecondaryCapture": "0915",
    "FrameReferenceDateTime": "202402",
}
ITEMS: Elements = {
    "RequestAttributesSequence": [
        {"ScheduledProcedureStepID": "STEP1", "RequestedProcedureID": "PROC1"},
        {
            "ScheduledProcedureStepID": "STEP2",
            "RequestedProcedureID": "PROC2",
            "RequestedProcedureDescription": "Head",
        },
    ],
    "OtherPatientIDsSequence": [
        {"PatientID": "OTHER-7", "IssuerOfPatientID": "CITY"},
        {"PatientID": "OTHER-8", "IssuerOfPatientID": "LAND"},
    ],
    "ProcedureCodeSequence": [
        {"CodeValue": "P5-09051", "CodingSchemeDesignator": "SRT", "CodeMeaning": "MRI"}
    ],
    "ConceptNameCodeSequence": [
        {
            "CodeValue": "A",
            "EquivalentCodeSequence": [
                {"CodeValue": "B", "CodeMeaning": "x"},
                {"CodeValue": "C", "CodeMeaning": "y"},
            ],
        }
    ],
    "ReferencedImageSequence": [{"ReferencedSOPInstanceUID": "2.25.5.5", "ReferencedFrameNumber": "1\\2"}],
    "ScheduledStepAttributesSequence": [
        {"ScheduledProcedureStepStartDate": "20240105", "ScheduledProcedureStepStartTime": "08"}
    ],
    "DeviceSequence": [],
}
CREATORS: Elements = {
    (0x00290010, "LO"): "SIEMENS CSA HEADER",
    (0x00290011, "LO"): "ACME 1.0, Berlin",
    (0x00291008, "CS"): "IMAGE NUM 4",
    (0x00291108, "LO"): "other",
    (0x00291109, "DS"): "2.50",
    (0x0029110A, "UN"): b"lost vr ",
    (0x0029110B, "PN"): "Doe^J",
    (0x0029110C, "OB"): b"\0\1\2\3",
}
NAME: Elements = {"PatientName": "Doe^John^Q^Dr^Jr", "ReferringPhysicianName": "O'Hara^Anna Maria"}
GREEK = "Διονυσιος"

GROUPS = [
    # Single values: case counts, padding doesn't.
    Group(
        SINGLE,
        CHEST,
        [
            "StudyDescription=Chest CT",
            "StudyDescription= Chest CT ",
            "00081030=Chest CT",
            "0008,1030=Chest CT",
            "(0008,1030)=Chest CT",
            "AccessionNumber=ACC-17",
            "StudyID=S 1",
            "PatientSex=F",
            "StudyDescription=Chest CT & PatientSex=F",
        ],
        [
            "StudyDescription=chest ct",
            "StudyDescription=Chest",
            "StudyDescription=Chest  CT",
            "AccessionNumber=ACC-1",
            "AccessionNumber=acc-17",
            "StudyID=S1",
            "PatientSex=f",
            "StudyDescription=Chest CT & PatientSex=M",
        ],
    ),
    Group(
        SINGLE,
        NUMBERS,
        [
            "SeriesNumber=7",
            "SeriesNumber=+007",
            "InstanceNumber=012",
            "SliceThickness=1.5",
            "SliceThickness=15e-1",
            "WindowCenter=400",
            "EchoTime=5",
            "KVP=120.0",
            "Rows=512",
            "BeamOrderIndex=3",
            "SpacingBetweenSlices=0",
            "FocalSpots=1.2",
            "FrameIncrementPointer=00181065",
            "FrameIncrementPointer=FrameTimeVector",
            "PatientAge=045Y",
            "LossyImageCompression=00",
        ],
        [
            "SeriesNumber=70",
            "InstanceNumber=1",
            "SliceThickness=1.51",
            "WindowCenter=4",
            "EchoTime=50",
            "Rows=51",
            "RepetitionTime=5",
            "FrameIncrementPointer=00181066",
            "PatientAge=45Y",
            "LossyImageCompression=0",
            "MagneticFieldStrength=3",
        ],
        level="instances",
    ),
    Group(
        SINGLE,
        UIDS,
        ["FrameOfReferenceUID=2.25.77.1", "SOPClassUID=1.2.840.10008.5.1.4.1.1.4"],
        ["FrameOfReferenceUID=2.25.77", "FrameOfReferenceUID=2.25.77.10"],
        level="series",
    ),
    # Names: neither case nor accents, component by component, each group.
    Group(
        SINGLE,
        NAME,
        [
            "PatientName=Doe^John^Q^Dr^Jr",
            "PatientName=DOE^JOHN^Q^DR^JR",
            "PatientName=doe ^ john^q^dr^jr",
            "ReferringPhysicianName=o'hara^anna  maria",
            "PatientName=D\xf6e^John^Q^Dr^Jr",
        ],
        [
            "PatientName=Doe",
            "PatientName=Doe^John",
            "PatientName=John^Doe^Q^Dr^Jr",
            "ReferringPhysicianName=O'Hara",
            "PatientName=Doe^John^Q^Jr^Dr",
        ],
    ),
    Group(
        SINGLE,
        {"PatientName": "M\xfcller^J\xf6rg", "SpecificCharacterSet": "ISO_IR 100"},
        ["PatientName=muller^jorg", "PatientName=M\xdcLLER^J\xd6RG", "PatientName=mu\u0308ller^jo\u0308rg"],
        ["PatientName=mueller^joerg"],
    ),
    Group(
        SINGLE,
        {
            "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう".encode(),
            "SpecificCharacterSet": "ISO_IR 192",
        },
        [
            "PatientName=yamada^tarou",
            "PatientName=山田^太郎",
            "PatientName=やまだ^たろう",
            "PatientName==山田^太郎",
            "PatientName===やまだ^たろう",
            "PatientName=Yamada^Tarou=山田^太郎",
            "PatientName=Yamada^Tarou==やまだ^たろう",
        ],
        [
            "PatientName=山田",
            "PatientName==Yamada^Tarou",
            "PatientName=Yamada^Tarou=山本^太郎",
            "PatientName=ヤマダ^タロウ",
        ],
    ),
    Group(
        SINGLE,
        {"PatientName": "Roe^Jane^^^"},
        ["PatientName=Roe^Jane", "PatientName=Roe^Jane^"],
        ["PatientName=Roe"],
    ),
    # An element that several instances of a study have: an instance's own, its series', its study's.
    Group(
        SINGLE,
        [
            {"SliceThickness": "9.25", "BodyPartExamined": "KNEE"},
            {"SliceThickness": "9.5", "BodyPartExamined": "HIP"},
        ],
        [
            "SliceThickness=9.25",
            "SliceThickness=9.5",
            "BodyPartExamined=KNEE",
            "BodyPartExamined=HIP",
            "SliceThickness=9.5 & BodyPartExamined=HIP",
        ],
        [
            "SliceThickness=9.75",
            "SliceThickness=9.25 & BodyPartExamined=HIP",
            "SliceThickness=9.25 & SliceThickness=9.5",
        ],
    ),
    Group(
        SINGLE,
        [{"AdmissionID": "ADM-1"}, {"AdmissionID": "ADM-2"}],  # of the study: its donor's counts
        ["AdmissionID=ADM-1"],
        ["AdmissionID=ADM-2"],
    ),
    # Lists.
    Group(
        LIST,
        UIDS
        | {"SOPInstanceUID": "2.25.881", "SeriesInstanceUID": "2.25.882", "StudyInstanceUID": "2.25.883"},
        [
            "SOPInstanceUID=2.25.1\\2.25.881",
            "SOPInstanceUID=2.25.881,2.25.1",
            "SeriesInstanceUID=2.25.882\\2.25.1",
            "StudyInstanceUID=2.25.883,",
            "StudyInstanceUID=2.25.1\\2.25.883\\2.25.883",
            "FrameOfReferenceUID=2.25.77.1,2.25.77.2",
        ],
        ["SOPInstanceUID=2.25.1\\2.25.2", "StudyInstanceUID=2.25.883 & SOPInstanceUID=2.25.1"],
        level="instances",
    ),
    Group(
        MULTIPLE,
        [{"Modality": "CT"}, {"Modality": "PT"}],  # without negotiation: any of them
        [
            "ModalitiesInStudy=CT",
            "ModalitiesInStudy=PT",
            "ModalitiesInStudy=MR\\PT",
            "ModalitiesInStudy=CT\\MR",
            "Modality=PT",
            "Modality=MR\\CT",
            "ModalitiesInStudy=C*",
            "ModalitiesInStudy=CT & ModalitiesInStudy=PT",
        ],
        [
            "ModalitiesInStudy=MR",
            "ModalitiesInStudy=ct",
            "ModalitiesInStudy=MR\\US",
            "ModalitiesInStudy=CT & Modality=MR",
        ],
    ),
    Group(
        MULTIPLE,
        {"PatientID": "P-A\\P-B", "AccessionNumber": "N1\\N2"},
        ["PatientID=P-B", "AccessionNumber=N2", "AccessionNumber=N3\\N1"],
        ["PatientID=P-C", "AccessionNumber=N1N2"],
    ),
    # Everything.
    Group(
        UNIVERSAL,
        {"PatientName": "", "AccessionNumber": ""},
        [
            "PatientName=",
            "PatientName=*",
            "StudyDate=",
            "StudyDate=*",
            "MagneticFieldStrength=",
            "MagneticFieldStrength=*",
            "RequestAttributesSequence=",
            "RequestAttributesSequence.ScheduledProcedureStepID=",
            "StudyInstanceUID=*",
            "PatientName=^^",
            "PatientName=*^*",
            "AccessionNumber=**",
            "SpecificCharacterSet=ISO_IR 192",
            "QueryRetrieveLevel=STUDY",
            "PixelData=",
        ],
        ["PatientName=?*", "AccessionNumber=?", "MagneticFieldStrength=0"],
    ),
    # Wild cards.
    Group(
        WILDCARD,
        CHEST,
        [
            "StudyDescription=Chest*",
            "StudyDescription=*CT",
            "StudyDescription=*est*",
            "StudyDescription=C?est CT",
            "StudyDescription=????? CT",
            "StudyDescription=*C*C*",
            "AccessionNumber=ACC*",
            "AccessionNumber=?CC-1?",
            "AccessionNumber=*17",
            "StudyID=S?1",
            "PatientSex=?",
            "StudyDescription=Chest CT*",
        ],
        [
            "StudyDescription=chest*",
            "StudyDescription=*ct",
            "StudyDescription=Chest?CT?",
            "AccessionNumber=ACC?",
            "StudyID=S??1",
            "StudyDescription=*C*C*C*",
            "AccessionNumber=CC*",
        ],
    ),
    Group(
        WILDCARD,
        {
            "PatientComments": "line one\r\nline *two?",
            "SeriesDescription": "T2 [ax] (fs)",
            "ImageComments": "a+b",
            "RetrieveURI": "http://host/a",
            "StationAETitle": "AE 1",
        },
        [
            "PatientComments=*two?",
            "PatientComments=line*",
            "SeriesDescription=T2 [ax]*",
            "SeriesDescription=T? [ax] (fs)",
            "ImageComments=a+?",
            "RetrieveURI=http://*",
            "ImageComments=*+*",
        ],
        ["PatientComments=*three", "SeriesDescription=T2 a*", "ImageComments=aab", "RetrieveURI=ftp*"],
        level="series",
    ),
    Group(
        WILDCARD,
        NAME,
        [
            "PatientName=doe*",
            "PatientName=DOE^J*",
            "PatientName=d?e^*",
            "PatientName=*john*",
            "PatientName=*^john*",
            "PatientName=Doe^*^Q*",
            "PatientName=*",
            "ReferringPhysicianName=*hara^anna*",
            "PatientName=doe^john*jr",
        ],
        [
            "PatientName=do?",
            "PatientName=john*",
            "PatientName=doe^d*",
            "PatientName=?doe*",
            "PatientName=Doe^*^R*",
        ],
    ),
    Group(
        WILDCARD,
        {"PatientName": "Hong^Gildong=洪^吉洞=홍^길동".encode(), "SpecificCharacterSet": "ISO_IR 192"},
        [
            "PatientName=홍*",
            "PatientName=홍^?동",
            "PatientName=*洪*",
            "PatientName==洪^*",
            "PatientName=hong^gil*==홍*",
        ],
        ["PatientName=길*", "PatientName==hong*", "PatientName=hong^gil*=홍*"],
    ),
    # Ranges of dates, times and both in one.
    Group(
        RANGE,
        DATED,
        [
            "StudyDate=20240229",
            "StudyDate=20240201-20240301",
            "StudyDate=20240229-20240229",
            "StudyDate=20240229-",
            "StudyDate=-20240229",
            "StudyDate=20240101 - 20241231",
            "StudyTime=10",
            "StudyTime=1030",
            "StudyTime=103000",
            "StudyTime=103000.5",
            "StudyTime=1000-1059",
            "StudyTime=1030-",
            "StudyTime=-1030",
            "StudyTime=0900-103000.5",
            "SeriesDate=20240301",
            "SeriesTime=10-11",
            "PatientBirthDate=-19701231",
            "ContentTime=2359",
            "DateOfSecondaryCapture=20240301-20240331",
            "TimeOfSecondaryCapture=09",
            "StudyDate=2024.02.29",
            "StudyDate=20240229 & StudyTime=10",
            "StudyDate=20240201-20240301 & StudyTime=10",
        ],
        [
            "StudyDate=20240228",
            "StudyDate=20240301-",
            "StudyDate=-20240228",
            "StudyTime=11",
            "StudyTime=1031-",
            "StudyTime=-1029",
            "StudyTime=103001",
            "SeriesTime=11-12",
            "SeriesTime=0900-0959",
            "ContentDate=-20991231",
            "ContentDate=19000101-",
            "StudyTime=2200-1030",
            "DateOfSecondaryCapture=-20240301",
            "StudyDate=20240201-20240301 & StudyTime=11",
        ],
        level="instances",
    ),
    Group(
        RANGE,
        DATED,
        [
            "AcquisitionDateTime=20240229",
            "AcquisitionDateTime=2024",
            "AcquisitionDateTime=202402-202403",
            "AcquisitionDateTime=2024022909+0000",
            "AcquisitionDateTime=202402291030-202402291031",
            "AcquisitionDateTime=20240229093000.25+0000",
            "AcquisitionDateTime=20240229-",
            "AcquisitionDateTime=-20240229",
            "AcquisitionDateTime=202402291130+0200-202402291131+0200",
            "FrameReferenceDateTime=2024-",
        ],
        [
            "AcquisitionDateTime=20240228",
            "AcquisitionDateTime=2024022909",
            "AcquisitionDateTime=2024022910+0000",
            "AcquisitionDateTime=2025-",
            "AcquisitionDateTime=-2023",
            "AcquisitionDateTime=202402291031-0000",
            "FrameReferenceDateTime=2025-",
        ],
        level="instances",
    ),
    Group(
        RANGE,
        {
            "StudyDate": "20240310",
            "StudyTime": "2200",
            "PerformedProcedureStepStartDate": "20240311",
            "PerformedProcedureStepStartTime": "0100",
        },
        [
            "StudyDate=20240310-20240311 & StudyTime=2100-0500",
            "StudyDate=20240309-20240311 & StudyTime=2300-0100",
            "StudyDate=20240310- & StudyTime=2100-",
            "StudyDate=-20240310 & StudyTime=-2200",
            "StudyDate=20240309- & StudyTime=2300-",
            "StudyTime=2100-0500 & StudyDate=20240310-20240311",
            "StudyDate=20240310-20240310 & StudyTime=2200-2200",
            "PerformedProcedureStepStartDate=20240310-20240311 & PerformedProcedureStepStartTime=2200-0200",
            "StudyDate=20240301-20240331 & StudyTime=-0500",
            "StudyDate=20240309- & StudyTime=-2300",
        ],
        [
            "StudyDate=20240310-20240311 & StudyTime=2300-0500",
            "StudyDate=20240309-20240310 & StudyTime=2300-2100",
            "StudyDate=20240310- & StudyTime=2300-",
            "StudyDate=-20240310 & StudyTime=-2100",
            "PerformedProcedureStepStartDate=20240310-20240311 & PerformedProcedureStepStartTime=0000-0030",
            "StudyDate=20240310 & StudyTime=2300-2359",
            "StudyDate=20240309- & StudyTime=-2100",
        ],
        level="series",
    ),
    Group(  # not combined: these hours on each of the days
        RANGE,
        {"StudyDate": "20240320", "StudyTime": "1200"},
        ["StudyDate=20240319-20240321 & StudyTime=1100-1300"],
        [
            "StudyDate=20240319-20240321 & StudyTime=1300-1400",
            "StudyDate=20240319-20240321 & StudyTime=2300-0100",
        ],
        options={"combined": False},
    ),
    Group(  # a date without a time stands for its whole day
        RANGE,
        {"StudyDate": "20240325", "StudyTime": ""},
        ["StudyDate=20240324-20240326 & StudyTime=2300-0100", "StudyDate=20240325- & StudyTime=0000-"],
        [
            "StudyDate=20240325-20240326 & StudyTime=0100-0100",
            "StudyDate=20240325 & StudyTime=00",
            "StudyTime=0000-",
        ],
    ),
    Group(
        RANGE,
        {"StudyDate": "20150101\\20250101"},
        ["StudyDate=20250101", "StudyDate=20241231-", "StudyDate=-20150101"],
        ["StudyDate=20160101-20241231"],
    ),
    Group(
        RANGE,
        {"StudyDate": ""},
        ["StudyDate=*"],
        ["StudyDate=19000101-", "StudyDate=-20991231", "StudyDate=20240101"],
    ),
    # Sequences: all keys of an item are met by one item.
    Group(
        SEQUENCE,
        ITEMS,
        [
            "RequestAttributesSequence.ScheduledProcedureStepID=STEP1",
            "RequestAttributesSequence.RequestedProcedureID=PROC2",
            "00400275.00400009=STEP?",
            "RequestAttributesSequence.ScheduledProcedureStepID=STEP1 & "
            "RequestAttributesSequence.RequestedProcedureID=PROC1",
            "RequestAttributesSequence.RequestedProcedureDescription=Head",
            "00400275.RequestedProcedureDescription=Head & 00400275.RequestedProcedureID=PROC2",
            "OtherPatientIDsSequence.PatientID=OTHER-8",
            "OtherPatientIDsSequence.PatientID=OTHER-7 & OtherPatientIDsSequence.IssuerOfPatientID=CITY",
            "00101002.00100020=OTHER-7",
            "ProcedureCodeSequence.CodeValue=P5-*",
            "ProcedureCodeSequence.CodeMeaning=MRI",
            "ConceptNameCodeSequence.EquivalentCodeSequence.CodeValue=C",
            "0040A043.CodeValue=A & 0040A043.00080121.CodeValue=B & "
            "ConceptNameCodeSequence.EquivalentCodeSequence.CodeMeaning=x",
            "ReferencedImageSequence.ReferencedSOPInstanceUID=2.25.5.5,2.25.6",
            "ReferencedImageSequence.ReferencedFrameNumber=2",
            "ScheduledStepAttributesSequence.ScheduledProcedureStepStartDate=20240101-20240131",
            "ScheduledStepAttributesSequence.ScheduledProcedureStepStartDate=20240104-20240106 & "
            "ScheduledStepAttributesSequence.ScheduledProcedureStepStartTime=23-07",
            "DeviceSequence.DeviceDescription=",
        ],
        [
            "RequestAttributesSequence.ScheduledProcedureStepID=STEP3",
            "RequestAttributesSequence.ScheduledProcedureStepID=STEP1 & "
            "RequestAttributesSequence.RequestedProcedureID=PROC2",
            "OtherPatientIDsSequence.PatientID=OTHER-7 & OtherPatientIDsSequence.IssuerOfPatientID=LAND",
            "OtherPatientIDsSequence.PatientID=OTHER",
            "00400275.RequestedProcedureDescription=Head & 00400275.RequestedProcedureID=PROC1",
            "0040A043.00080121.CodeValue=B & 0040A043.00080121.CodeMeaning=y",
            "ConceptNameCodeSequence.CodeValue=B",
            "EquivalentCodeSequence.CodeValue=B",
            "DeviceSequence.DeviceDescription=x",
            "ReferencedImageSequence.ReferencedFrameNumber=3",
        ],
    ),
    Group(
        SEQUENCE,
        ITEMS,
        [
            "RequestAttributesSequence.ScheduledProcedureStepID=STEP2",
            "OtherPatientIDsSequence.PatientID=OTHER-7",
        ],
        ["00400275.ScheduledProcedureStepID=STEP1 & 00400275.RequestedProcedureID=PROC2"],
        level="instances",
    ),
    Group(
        SEQUENCE,
        ITEMS,
        ["OtherPatientIDsSequence.PatientID=OTHER-7"],
        ["OtherPatientIDsSequence.PatientID=OTHER-9"],
        level="patients",
    ),
    # What is empty or absent.
    Group(
        EMPTY,
        {
            "PatientName": "",
            "AccessionNumber": None,
            "StudyDate": "",
            "StudyDescription": " ",
            "StudyTime": "10",
        },
        [
            'PatientName=""',
            'AccessionNumber=""',
            'StudyDate=""',
            'StudyDescription=""',
            'MagneticFieldStrength=""',
            'RequestAttributesSequence.ScheduledProcedureStepID=""',
            'OtherPatientIDsSequence=""',
            'AccessionNumber="" & PatientName=""',
            'StudyDate="" & StudyTime=10',
            'OtherPatientIDsSequence.PatientID=""',
            '0029,"SIEMENS CSA HEADER",08=""',
            'FrameOfReferenceUID=""',
        ],
        ['PatientID=""', 'StudyTime=""', 'StudyInstanceUID=""', 'ModalitiesInStudy=""'],
        options={"empty_value": True},
    ),
    Group(
        EMPTY,
        ITEMS | {"StudyDescription": "x"},
        ['RequestAttributesSequence.RequestedProcedureDescription=""', 'DeviceSequence=""'],
        [
            'StudyDescription=""',
            'OtherPatientIDsSequence=""',
            'OtherPatientIDsSequence.PatientID=""',
            'RequestAttributesSequence.ScheduledProcedureStepID=""',
        ],
        options={"empty_value": True},
    ),
    Group(
        EMPTY,
        {"StudyDescription": '""', "AccessionNumber": ""},
        ['StudyDescription=""'],
        ['AccessionNumber=""'],
    ),
    # Character sets: text is compared, not bytes.
    Group(
        CHARACTERS,
        {"StudyDescription": "Sch\xe4del", "SpecificCharacterSet": "ISO_IR 100"},
        ["StudyDescription=Sch\xe4del", "StudyDescription=Sch?del", "StudyDescription=*\xe4*"],
        ["StudyDescription=Schadel"],
    ),
    Group(
        CHARACTERS,
        {"StudyDescription": "Sch\xe4del".encode(), "SpecificCharacterSet": "ISO_IR 192"},
        ["StudyDescription=Sch\xe4del", "StudyDescription=Sch?del"],
        ["StudyDescription=Sch??del"],
    ),
    Group(
        CHARACTERS,
        {"PatientName": "Люксембург".encode("iso8859_5"), "SpecificCharacterSet": "ISO_IR 144"},
        ["PatientName=люксембург", "PatientName=ЛЮК*"],
        ["PatientName=люк"],
    ),
    Group(
        CHARACTERS,
        {"PatientName": GREEK.encode("iso8859_7"), "SpecificCharacterSet": "ISO_IR 126"},
        ["PatientName=ΔΙΟΝΥΣΙΟΣ", "PatientName=*διον*"],
        ["PatientName=*ξ*"],
    ),
    Group(
        CHARACTERS,
        {"PatientName": "قباني^لنزار".encode("iso8859_6"), "SpecificCharacterSet": "ISO_IR 127"},
        ["PatientName=قباني^لنزار", "PatientName=قباني^*"],
        ["PatientName=لنزار^*"],
    ),
    Group(
        CHARACTERS,
        {"PatientName": "שרון^דבורה".encode("iso8859_8"), "SpecificCharacterSet": "ISO_IR 138"},
        ["PatientName=שרון^דבורה", "PatientName=שרון*"],
        ["PatientName=דבורה*"],
    ),
    Group(
        CHARACTERS,
        {"PatientName": "Wang^XiaoDong=王^小东".encode("gb18030"), "SpecificCharacterSet": "GB18030"},
        ["PatientName=王^小东", "PatientName==王*", "PatientName=wang^xiao*"],
        ["PatientName=小东"],
    ),
    Group(
        CHARACTERS,
        {
            "PatientName": b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
            "SpecificCharacterSet": "\\ISO 2022 IR 87",
        },
        ["PatientName=山田^太郎", "PatientName=*山*", "PatientName=yamada^tarou=山田*"],
        ["PatientName=山本*"],
    ),
    Group(
        CHARACTERS,
        {
            "PatientName": b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7",
            "SpecificCharacterSet": "\\ISO 2022 IR 149",
        },
        ["PatientName=洪^吉洞", "PatientName=hong^*"],
        ["PatientName=吉洞^洪"],
    ),
    Group(
        CHARACTERS,
        {"PatientName": "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis"), "SpecificCharacterSet": "ISO_IR 13"},
        ["PatientName=ﾔﾏﾀﾞ^ﾀﾛｳ", "PatientName=ヤマダ^タロウ", "PatientName=ヤマ*"],
        ["PatientName=ヤマタ*"],
    ),
    Group(
        CHARACTERS,
        {"OtherPatientIDsSequence": [{"PatientID": "\xe4-1", "SpecificCharacterSet": "ISO_IR 100"}]},
        ["OtherPatientIDsSequence.PatientID=\xe4-1"],
        ["OtherPatientIDsSequence.PatientID=a-1"],
    ),
    Group(
        CHARACTERS,
        {"PatientName": "Straße^Zoë".encode(), "SpecificCharacterSet": "ISO_IR 192"},
        ["PatientName=STRASSE^ZOE", "PatientName=straße^zoe", "PatientName=stras*"],
        ["PatientName=strase^zoe"],
    ),
    # Time zones: of the question and of the data set.
    Group(
        TIMEZONE,
        {
            "StudyDate": "20240501",
            "StudyTime": "0030",
            "TimezoneOffsetFromUTC": "+0200",
            "SeriesDate": "20240501",
            "AcquisitionDateTime": "202405010030",
        },
        [
            "StudyDate=20240430",
            "StudyDate=20240430 & StudyTime=22",
            "StudyTime=2230",
            "StudyDate=20240430-20240430 & StudyTime=22-23",
            "SeriesDate=20240501",
            "AcquisitionDateTime=2024043022",
        ],
        ["StudyDate=20240501", "StudyTime=00", "StudyDate=20240501-", "AcquisitionDateTime=20240501"],
        options={"timezone": "+0000"},
        level="instances",
    ),
    Group(
        TIMEZONE,
        {"StudyDate": "20240501", "StudyTime": "0030", "TimezoneOffsetFromUTC": "+0200"},
        [
            "StudyDate=20240501 & StudyTime=00",
            "StudyDate=20240430 & TimezoneOffsetFromUTC=-0500",
            "StudyTime=17-18 & TimezoneOffsetFromUTC=-0500",
        ],
        ["StudyDate=20240430", "StudyDate=20240501 & TimezoneOffsetFromUTC=-0500"],
    ),
    Group(
        TIMEZONE,
        {"StudyDate": "20240501", "StudyTime": "0030"},  # none stated: as it stands
        ["StudyDate=20240501", "StudyTime=00"],
        ["StudyDate=20240430"],
        options={"timezone": "-0500"},
    ),
    Group(
        TIMEZONE,
        {
            "DateOfSecondaryCapture": "20240501",
            "TimeOfSecondaryCapture": "0030",
            "TimezoneOffsetFromUTC": "+0200",
        },
        ["DateOfSecondaryCapture=20240430"],
        ["DateOfSecondaryCapture=20240501"],
        options={"timezone": "+0000"},
    ),
    # Fuzzy names.
    Group(
        FUZZY,
        NAME,
        [
            "PatientName=Doe^John^Q^Dr^Jr",
            "PatientName=John Doe",
            "PatientName=doe, john",
            "PatientName=jo do",
            "PatientName=jonh",
            "PatientName=jhon doe",
            "PatientName=Doe*",
            "PatientName=*joh*",
            "ReferringPhysicianName=ohara anna",
            "ReferringPhysicianName=o'hara",
            "ReferringPhysicianName=hara",
            "ReferringPhysicianName=anna marya",
            "PatientName=d?e",
            "PatientName=*jonh*",
        ],
        [
            "PatientName=Doe Jane",
            "PatientName=joe",
            "PatientName=ohn",
            "ReferringPhysicianName=bob",
            "PatientName=-",
            "PatientName=smith & ReferringPhysicianName=anna",
        ],
        options={"fuzzy": True},
    ),
    Group(
        FUZZY,
        {"PatientName": "Mayer^Stephanie=山田^太郎".encode(), "SpecificCharacterSet": "ISO_IR 192"},
        [
            "PatientName=meier",
            "PatientName=Maier^Stefanie",
            "PatientName=stefany",
            "PatientName=太郎 山田",
            "PatientName=太",
        ],
        ["PatientName=mueller", "PatientName=Stephanie 山田", "PatientName=田"],
        options={"fuzzy": True},
    ),
    Group(FUZZY, NAME, ["PatientName=Doe^John^Q^Dr^Jr"], ["PatientName=John Doe", "PatientName=jo do"]),
    # Private elements, by tag and by creator.
    Group(
        PRIVATE,
        CREATORS,
        [
            "00291008=IMAGE NUM 4",
            '0029,"SIEMENS CSA HEADER",08=IMAGE*',
            '(0029,"SIEMENS CSA HEADER",08)=IMAGE NUM 4',
            "00290010=SIEMENS CSA HEADER & 00291008=IMAGE NUM 4",
            "002900B0=SIEMENS CSA HEADER & 0029B008=IMAGE NUM 4",
            '0029,"ACME 1.0, Berlin",08=other',
            '0029,"ACME 1.0, Berlin",08=other & 0029,"SIEMENS CSA HEADER",08=IMAGE*',
            '0029,"ACME 1.0, Berlin",09=2.5',
            '0029,"ACME 1.0, Berlin",0A=lost*',
            '0029,"ACME 1.0, Berlin",0B=DOE^*',
            "00290010=SIEMENS CSA HEADER",
            "00290011=ACME*",
        ],
        [
            "00291008=other",
            '0029,"SIEMENS CSA HEADER",08=other',
            '0029,"NOBODY",08=*x',
            "00290010=ACME 1.0 & 00291008=IMAGE NUM 4",
            '0029,"ACME 1.0, Berlin",09=abc',
            '0029,"ACME 1.0, Berlin",09=3',
            '0029,"ACME 1.0, Berlin",0C=x',
            "00290010=OTHER",
            '0009,"SIEMENS CSA HEADER",08=IMAGE*',
        ],
        level="instances",
    ),
    Group(
        PRIVATE,
        {"PrivateGroupReference": 41, "DigitalSignaturesSequence": [CREATORS]},
        [
            'DigitalSignaturesSequence.0029,"ACME 1.0, Berlin",08=other',
            "DigitalSignaturesSequence.00290099=ACME 1.0, Berlin & DigitalSignaturesSequence.00299908=other",
        ],
        ['DigitalSignaturesSequence.0029,"SIEMENS CSA HEADER",08=other', '0029,"ACME 1.0, Berlin",08=other'],
    ),
    # Counts.
    Group(
        ATTRIBUTES,
        [{"PatientID": "COUNTED", "Modality": "CT"}, {"PatientID": "COUNTED", "Modality": "SR"}],
        [
            "NumberOfStudyRelatedSeries=2 & PatientID=COUNTED",
            "NumberOfStudyRelatedInstances=2 & PatientID=COUNTED",
            "NumberOfPatientRelatedStudies=1 & PatientID=COUNTED",
            "NumberOfSeriesRelatedInstances=1 & PatientID=COUNTED",
        ],
        [
            "NumberOfStudyRelatedSeries=1 & PatientID=COUNTED",
            "NumberOfStudyRelatedInstances=1 & PatientID=COUNTED",
            "NumberOfPatientRelatedStudies=2 & PatientID=COUNTED",
            "NumberOfSeriesRelatedInstances=2 & PatientID=COUNTED",
        ],
    ),
    Group(
        ATTRIBUTES,
        [{"PatientID": "TWICE"}, {"PatientID": "TWICE"}],
        [
            "NumberOfPatientRelatedInstances=2 & PatientID=TWICE",
            "NumberOfStudyRelatedSeries=2 & PatientID=TWICE",
        ],
        ["NumberOfPatientRelatedSeries=1 & PatientID=TWICE"],
        level="patients",
    ),
    # Keys of other levels.
    Group(
        RELATIONAL,
        {"PatientID": "REL", "Modality": "OT", "InstanceNumber": "77"},
        ["PatientID=REL & Modality=OT", "InstanceNumber=77 & PatientID=REL"],
        ["PatientID=REL & Modality=CT", "InstanceNumber=78"],
        level="patients",
    ),
    Group(
        RELATIONAL,
        {"PatientID": "REL2", "Modality": "OT", "InstanceNumber": "77"},
        ["PatientID=REL2", "PatientName=Doe^Jane & InstanceNumber=77", "Modality=OT"],
        ["PatientID=REL3", "Modality=CT"],
        level="instances",
    ),
    Group(
        HIERARCHY,
        UIDS
        | {"SOPInstanceUID": "2.25.991", "SeriesInstanceUID": "2.25.992", "StudyInstanceUID": "2.25.993"},
        [
            "StudyInstanceUID=2.25.993 & SeriesInstanceUID=2.25.992",
            "StudyInstanceUID=2.25.993 & SeriesInstanceUID=2.25.992 & SOPInstanceUID=2.25.991 & PatientName=",
        ],
        [
            "StudyInstanceUID=2.25.993 & SeriesInstanceUID=2.25.1",
            "StudyInstanceUID=2.25.1 & SeriesInstanceUID=2.25.992",
        ],
        level="instances",
        options={"relational": False},
    ),
    Group(
        HIERARCHY,
        {"PatientID": "HIER"},
        ["PatientID=HIER", "PatientID=HIER & PatientName=Doe*"],
        ["PatientID=HIER & PatientName=X"],
        options={"relational": False, "patient_root": False},
    ),
]

# Level, keys, options, words of the refusal.
REFUSED = [
    (SINGLE, "studies", "NoSuchKeyword=1", {}, "neither a keyword"),
    (SINGLE, "studies", "PatientNam=1", {}, "PatientName"),
    (SINGLE, "images", "PatientName=1", {}, "no level"),
    (SINGLE, "instances", "PixelData=1", {}, "can't be matched"),
    (SINGLE, "series", "SeriesNumber=two", {}, "no number"),
    (LIST, "studies", "StudyInstanceUID=1.2.*", {}, "wildcards don't work on UIDs"),
    (RANGE, "studies", "StudyDate=yesterday", {}, "StudyDate"),
    (RANGE, "studies", "StudyDate=20240302-20240301", {}, "ends before it begins"),
    (RANGE, "studies", "StudyDate=20240301-20240301 & StudyTime=12-11", {}, "ends before it begins"),
    (SEQUENCE, "series", "RequestAttributesSequence=1", {}, "SQ can't be matched"),
    (EMPTY, "studies", 'StudyDate=""', {}, "neither a DA value"),
    (TIMEZONE, "studies", "StudyDate=20240101", {"timezone": "CET"}, "no offset from UTC"),
    (TIMEZONE, "studies", "TimezoneOffsetFromUTC=2", {}, "no offset from UTC"),
    (PRIVATE, "studies", '0028,"ACME",01=1', {}, "odd group"),
    (HIERARCHY, "series", "Modality=CT", {"relational": False}, "StudyInstanceUID must have one value"),
    (HIERARCHY, "series", "StudyInstanceUID=", {"relational": False}, "StudyInstanceUID must have one value"),
    (
        HIERARCHY,
        "series",
        "StudyInstanceUID=1.2\\1.3",
        {"relational": False},
        "StudyInstanceUID must have one value",
    ),
    (
        HIERARCHY,
        "instances",
        "StudyInstanceUID=1.2",
        {"relational": False},
        "SeriesInstanceUID must have one value",
    ),
    (
        HIERARCHY,
        "instances",
        "StudyInstanceUID=1.2 & SeriesInstanceUID=1.3 & Modality=CT",
        {"relational": False},
        "relational",
    ),
    (HIERARCHY, "series", "StudyInstanceUID=1.2 & PatientName=Doe", {"relational": False}, "relational"),
    (
        HIERARCHY,
        "studies",
        "StudyDate=2024",
        {"relational": False, "patient_root": True},
        "PatientID must have one value",
    ),
    (
        HIERARCHY,
        "studies",
        "PatientID=A*",
        {"relational": False, "patient_root": True},
        "PatientID must have one value",
    ),
    (
        HIERARCHY,
        "studies",
        "PatientID=A & PatientName=x",
        {"relational": False, "patient_root": True},
        "relational",
    ),
]


def keys_of(text: str) -> tuple[tuple[str, str], ...]:
    """NAME=VALUE & NAME=VALUE as pairs."""
    pairs = (part.partition("=") for part in text.split(" & "))
    return tuple((name.strip(), value) for name, _, value in pairs)


def _instances(group: Group) -> list[Elements]:
    return [group.stored] if isinstance(group.stored, dict) else list(group.stored)


def _uids(number: int, index: int, elements: Elements) -> dict[str, str]:
    """Study, series and instance of a group's instance: the first one speaks for them all."""
    made = f"2.25.4000.{number:03}"
    own = {
        "StudyInstanceUID": made,
        "SeriesInstanceUID": f"{made}.{index + 1}",
        "SOPInstanceUID": f"{made}.{index + 1}.1",
        "PatientID": f"CASE-{number}",
    }
    return {name: str(elements.get(name, uid)) for name, uid in own.items()}


def _element(name: str | tuple[int, str], value: Any) -> tuple[int, bytes]:
    if isinstance(name, tuple):
        tag, vr = name
    else:
        tag = datadict.tag_for_keyword(name) or 0
        vr = datadict.dictionary_VR(tag).split(" ")[0]
    if vr == "SQ":
        value = b"".join(
            item(b"".join(dict(sorted(_element(*pair) for pair in one.items())).values())) for one in value
        )
    return tag, element(tag, vr, value)


def files() -> list[bytes]:
    """The objects of all groups."""
    found = []
    for number, group in enumerate(GROUPS):
        for index, elements in enumerate(_instances(group)):
            uids = _uids(number, index, elements)
            extra = dict(_element(name, value) for name, value in elements.items() if value is not None)
            file = make_object(
                uids["SOPInstanceUID"],
                uids["StudyInstanceUID"],
                uids["SeriesInstanceUID"],
                patient_id=uids["PatientID"],
                accession=None if elements.get("AccessionNumber", "") is None else "A1",
                extra=extra.items(),
            )
            found.append(file)
    return found


def _cases() -> Iterator[Case]:
    unique = {
        "patients": "PatientID",
        "studies": "StudyInstanceUID",
        "series": "SeriesInstanceUID",
        "instances": "SOPInstanceUID",
    }
    for number, group in enumerate(GROUPS):
        row = _uids(number, 0, _instances(group)[0])[unique[group.level]]
        for text, expected in [*((text, True) for text in group.yes), *((text, False) for text in group.no)]:
            name = f"{number} {group.level} {text} {'' if expected else 'not '}found"
            yield Case(group.clause, group.level, keys_of(text), group.options, row, expected, name)


CASES = list(_cases())

# cython: language_level=3, boundscheck=False, wraparound=False
# cython: initializedcheck=False, cdivision=True, embedsignature=True
"""Takes the bytes of a DICOM file, whole or in windows; gives where its indexed values, its bulk values
("holes") and its fragments lie. Decodes no text, loads no pixel data, and knows no store.

Above the line "Python boundary" all is `noexcept nogil` and speaks in C structs and a Status; below it
all holds the GIL. One Python object is made for a header, none for an element.

The scan only goes forward, so its time is bounded by the bytes of the head, whatever they say. It is one
flat loop over a stack of open sequences and items, so hostile nesting costs no C stack, and it can stop
anywhere with NEED and go on when the caller has brought the bytes it asked for: a hole is jumped over,
never read.

`offset` and `at` are bytes from the start of the file (of the inflated data set for a deflated one).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.errno cimport EINTR, EIO, errno
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset
from posix.types cimport off_t
from posix.unistd cimport pread

include "_sequence_tags.pxi"

cdef extern from *:
    """
    /* make fuzz builds once with this macro set, to see that it finds an over-read of one byte. */
    #ifdef HILUM_PLANT_OVERREAD
    #define HILUM_PLANTED 1
    #else
    #define HILUM_PLANTED 0
    #endif
    """
    const int HILUM_PLANTED

cdef enum Status:
    DONE = 0              # the end of the data set, between two elements
    NEED = 1              # not an end: bring `need_length` bytes from `need_at` on, then go on
    DEFLATED = 2          # not an end: the data set at `at` is deflated, PS3.5 A.5
    TRUNCATED = 3         # an element header, or a value outside the pixels, runs past the end
    NESTED_TOO_DEEP = 4   # more than DEPTH_MAX open sequences and items
    UNBALANCED = 5        # a delimiter without its item, or an element where an item must stand
    OVERRUN = 6           # a value runs past the end of the item that holds it
    UNDEFINED_LENGTH = 7  # legal but rare: undefined length outside SQ, UN and fragments
    NOT_DICOM = 8         # neither "DICM" at byte 128 nor anything that begins like a data set
    OUT_OF_MEMORY = 9
    TOO_MANY_FRAGMENTS = 10
    HEAD_TOO_LONG = 11    # more than HEAD_MAX bytes outside of holes

cdef enum:
    HEAD_MAX = 67108864             # 64 MiB: what is no hole is kept in memory by all who read it
    DEPTH_MAX = 512                 # our bound; the Standard sets none
    HOLE_COUNT_MAX = 4096           # values past this many stay in the head
    INFLATED_HOLE_COUNT_MAX = 255   # and past this many in an inflated one: its record counts them in a byte
    FRAGMENT_COUNT_MAX = 2097152    # 32 MiB of our own memory, and much more in Python's hands
    UNDEFINED = 0xFFFFFFFF          # PS3.5 7.1.1, Data Element Fields: Value Length
    ITEM = 0xFFFEE000
    ITEM_END = 0xFFFEE00D
    SEQUENCE_END = 0xFFFEE0DD
    PIXEL_BULK_MIN = 1024           # Pixel Data of this many bytes is a hole
    BULK_MIN = 65536                # so is any other value of this many, outside the File Meta Information
    VALUE_MAX = 8192                # an indexed value longer than this stays in the head
    VALUES_MAX = 32768              # and so does one that does not fit here with the others
    WINDOW = 8192                   # bytes of one read of the head
    FRAGMENT_WINDOW = 64            # and of one between two fragments

cdef enum Phase:
    START = 0
    META = 1        # group 0002, explicit VR little endian whatever follows
    COMMAND = 2     # group 0000, left by tools that dump DIMSE messages
    DATA_SET = 3
    FRAGMENTS = 4   # inside encapsulated Pixel Data

cdef enum Flags:
    PART10 = 1              # preamble and "DICM" were there
    IMPLICIT_VR = 2
    BIG_ENDIAN = 4
    PIXELS_TRUNCATED = 8    # Pixel Data promises more than the file holds
    OPAQUE_SEQUENCE = 16    # a sequence of known length with broken content was stepped over
    TRAILING_BYTES = 32     # fewer than 8 bytes after the last element
    VALUE_LEFT = 64         # an indexed value was too long for the index
    PIXEL_WORDS = 128       # Pixel Data is OW in big endian: two pixels of 8 bits stand in swapped order

cdef enum EntryFlags:
    HAS_VR = 1              # the value is preceded by two VR characters that differ from ours
    IN_HEAD = 2             # no value here: it is too long and must be read from the head

cdef enum Level:
    LEVEL_BOTH = 0
    LEVEL_PATIENT = 1
    LEVEL_STUDY = 2
    LEVEL_SERIES = 3
    LEVEL_INSTANCE = 4

cdef struct Wanted:
    uint32_t tag
    uint16_t vr         # two characters, first one in the high byte
    uint8_t level

cdef enum:
    WANTED_COUNT = 73
    NESTED_COUNT = 2
    REQUEST_ATTRIBUTES = 0x00400275

# Ascending by tag. The attributes that PS3.4 C.6 (Query/Retrieve Information Models) and PS3.18 10.6
# (Search Transaction) name for each level, and those that users filter by. An entry's place in this
# table is its number in the index: append nothing in the middle without a new index version.
cdef Wanted[WANTED_COUNT] WANTED = [
    Wanted(0x00080005, 0x4353, LEVEL_BOTH),      # CS Specific Character Set
    Wanted(0x00080008, 0x4353, LEVEL_INSTANCE),  # CS Image Type
    Wanted(0x00080012, 0x4441, LEVEL_INSTANCE),  # DA Instance Creation Date
    Wanted(0x00080013, 0x544D, LEVEL_INSTANCE),  # TM Instance Creation Time
    Wanted(0x00080016, 0x5549, LEVEL_INSTANCE),  # UI SOP Class UID
    Wanted(0x00080018, 0x5549, LEVEL_INSTANCE),  # UI SOP Instance UID
    Wanted(0x00080020, 0x4441, LEVEL_STUDY),     # DA Study Date
    Wanted(0x00080021, 0x4441, LEVEL_SERIES),    # DA Series Date
    Wanted(0x00080022, 0x4441, LEVEL_INSTANCE),  # DA Acquisition Date
    Wanted(0x00080023, 0x4441, LEVEL_INSTANCE),  # DA Content Date
    Wanted(0x0008002A, 0x4454, LEVEL_INSTANCE),  # DT Acquisition DateTime
    Wanted(0x00080030, 0x544D, LEVEL_STUDY),     # TM Study Time
    Wanted(0x00080031, 0x544D, LEVEL_SERIES),    # TM Series Time
    Wanted(0x00080032, 0x544D, LEVEL_INSTANCE),  # TM Acquisition Time
    Wanted(0x00080033, 0x544D, LEVEL_INSTANCE),  # TM Content Time
    Wanted(0x00080050, 0x5348, LEVEL_STUDY),     # SH Accession Number
    Wanted(0x00080060, 0x4353, LEVEL_SERIES),    # CS Modality
    Wanted(0x00080070, 0x4C4F, LEVEL_SERIES),    # LO Manufacturer
    Wanted(0x00080080, 0x4C4F, LEVEL_STUDY),     # LO Institution Name
    Wanted(0x00080090, 0x504E, LEVEL_STUDY),     # PN Referring Physician's Name
    Wanted(0x00080201, 0x5348, LEVEL_STUDY),     # SH Timezone Offset From UTC
    Wanted(0x00081010, 0x5348, LEVEL_SERIES),    # SH Station Name
    Wanted(0x00081030, 0x4C4F, LEVEL_STUDY),     # LO Study Description
    Wanted(0x0008103E, 0x4C4F, LEVEL_SERIES),    # LO Series Description
    Wanted(0x00081040, 0x4C4F, LEVEL_SERIES),    # LO Institutional Department Name
    Wanted(0x00081048, 0x504E, LEVEL_STUDY),     # PN Physician(s) of Record
    Wanted(0x00081050, 0x504E, LEVEL_SERIES),    # PN Performing Physician's Name
    Wanted(0x00081060, 0x504E, LEVEL_STUDY),     # PN Name of Physician(s) Reading Study
    Wanted(0x00081070, 0x504E, LEVEL_SERIES),    # PN Operators' Name
    Wanted(0x00081080, 0x4C4F, LEVEL_STUDY),     # LO Admitting Diagnoses Description
    Wanted(0x00081090, 0x4C4F, LEVEL_SERIES),    # LO Manufacturer's Model Name
    Wanted(0x00100010, 0x504E, LEVEL_PATIENT),   # PN Patient's Name
    Wanted(0x00100020, 0x4C4F, LEVEL_PATIENT),   # LO Patient ID
    Wanted(0x00100021, 0x4C4F, LEVEL_PATIENT),   # LO Issuer of Patient ID
    Wanted(0x00100030, 0x4441, LEVEL_PATIENT),   # DA Patient's Birth Date
    Wanted(0x00100032, 0x544D, LEVEL_PATIENT),   # TM Patient's Birth Time
    Wanted(0x00100040, 0x4353, LEVEL_PATIENT),   # CS Patient's Sex
    Wanted(0x00101000, 0x4C4F, LEVEL_PATIENT),   # LO Other Patient IDs
    Wanted(0x00101001, 0x504E, LEVEL_PATIENT),   # PN Other Patient Names
    Wanted(0x00101010, 0x4153, LEVEL_STUDY),     # AS Patient's Age
    Wanted(0x00101020, 0x4453, LEVEL_STUDY),     # DS Patient's Size
    Wanted(0x00101030, 0x4453, LEVEL_STUDY),     # DS Patient's Weight
    Wanted(0x00102160, 0x5348, LEVEL_PATIENT),   # SH Ethnic Group
    Wanted(0x00104000, 0x4C54, LEVEL_PATIENT),   # LT Patient Comments
    Wanted(0x00180015, 0x4353, LEVEL_SERIES),    # CS Body Part Examined
    Wanted(0x00181000, 0x4C4F, LEVEL_SERIES),    # LO Device Serial Number
    Wanted(0x00181020, 0x4C4F, LEVEL_SERIES),    # LO Software Versions
    Wanted(0x00181030, 0x4C4F, LEVEL_SERIES),    # LO Protocol Name
    Wanted(0x00185100, 0x4353, LEVEL_SERIES),    # CS Patient Position
    Wanted(0x0020000D, 0x5549, LEVEL_STUDY),     # UI Study Instance UID
    Wanted(0x0020000E, 0x5549, LEVEL_SERIES),    # UI Series Instance UID
    Wanted(0x00200010, 0x5348, LEVEL_STUDY),     # SH Study ID
    Wanted(0x00200011, 0x4953, LEVEL_SERIES),    # IS Series Number
    Wanted(0x00200012, 0x4953, LEVEL_INSTANCE),  # IS Acquisition Number
    Wanted(0x00200013, 0x4953, LEVEL_INSTANCE),  # IS Instance Number
    Wanted(0x00200052, 0x5549, LEVEL_SERIES),    # UI Frame of Reference UID
    Wanted(0x00200060, 0x4353, LEVEL_SERIES),    # CS Laterality
    Wanted(0x00280002, 0x5553, LEVEL_INSTANCE),  # US Samples per Pixel
    Wanted(0x00280004, 0x4353, LEVEL_INSTANCE),  # CS Photometric Interpretation
    Wanted(0x00280006, 0x5553, LEVEL_INSTANCE),  # US Planar Configuration
    Wanted(0x00280008, 0x4953, LEVEL_INSTANCE),  # IS Number of Frames
    Wanted(0x00280010, 0x5553, LEVEL_INSTANCE),  # US Rows
    Wanted(0x00280011, 0x5553, LEVEL_INSTANCE),  # US Columns
    Wanted(0x00280100, 0x5553, LEVEL_INSTANCE),  # US Bits Allocated
    Wanted(0x00280101, 0x5553, LEVEL_INSTANCE),  # US Bits Stored
    Wanted(0x00280102, 0x5553, LEVEL_INSTANCE),  # US High Bit
    Wanted(0x00280103, 0x5553, LEVEL_INSTANCE),  # US Pixel Representation
    Wanted(0x00400244, 0x4441, LEVEL_SERIES),    # DA Performed Procedure Step Start Date
    Wanted(0x00400245, 0x544D, LEVEL_SERIES),    # TM Performed Procedure Step Start Time
    Wanted(0x00400253, 0x5348, LEVEL_SERIES),    # SH Performed Procedure Step ID
    Wanted(0x00400254, 0x4C4F, LEVEL_SERIES),    # LO Performed Procedure Step Description
    Wanted(0x00700080, 0x4353, LEVEL_INSTANCE),  # CS Content Label
    Wanted(0x00700081, 0x4C4F, LEVEL_INSTANCE),  # LO Content Description
]

# Inside the items of Request Attributes Sequence; numbered after the table above.
cdef Wanted[NESTED_COUNT] NESTED = [
    Wanted(0x00400009, 0x5348, LEVEL_SERIES),    # SH Scheduled Procedure Step ID
    Wanted(0x00401001, 0x5348, LEVEL_SERIES),    # SH Requested Procedure ID
]

cdef struct Hole:
    uint64_t offset
    uint64_t length
    uint32_t tag

cdef struct Fragment:
    uint64_t offset         # of the item's header, from the start of the Pixel Data value
    uint64_t length         # of the item's value

cdef struct Open:           # a sequence or an item that has begun and not ended
    uint64_t end            # where it ends; NEVER for undefined length
    uint64_t limit          # the nearest known end, its own or of what is around it: nothing in it passes that
    uint64_t hole_bytes     # of the holes found before it began, as hole_count and upper_size
    uint32_t hole_count
    uint32_t upper_size
    uint32_t tag            # of the sequence; ITEM for an item
    uint32_t outermost      # 1 + place in the stack of the outermost sequence of known length; 0 for none
    bint implicit           # encoding outside it, to go back to
    bint big

cdef struct Values:         # growing bytes: entries of u8 number, u8 EntryFlags, u16 length, value
    uint8_t* data
    uint32_t size
    uint32_t room
    uint8_t[WANTED_COUNT + NESTED_COUNT] left   # whether the last entry of this number is IN_HEAD

cdef struct Place:
    uint64_t offset
    uint32_t length

cdef struct Scan:
    const uint8_t* data     # the window
    uint64_t base           # offset of its first byte
    uint64_t have           # bytes in it
    uint64_t total          # bytes in the file
    uint64_t at             # read position; after a failure, where it was found
    uint32_t tag            # element at `at`, for the error message
    uint64_t need_at
    uint64_t need_length
    uint32_t flags
    Phase phase
    bint implicit
    bint big
    uint64_t data_set_at    # first byte after the File Meta Information
    uint32_t next_wanted    # tags ascend, so the table is walked along with them
    uint32_t last_tag
    uint32_t depth
    Open[DEPTH_MAX] open
    uint64_t hole_bytes     # sum of the lengths of holes
    Hole* holes
    uint32_t hole_count
    uint32_t hole_count_max
    uint32_t hole_room
    Hole* known             # when a head is scanned: the holes that were taken out of it, ascending
    uint32_t known_count
    uint32_t known_next
    Fragment* fragments     # of the Pixel Data at top level
    uint32_t fragment_count
    uint32_t fragment_room
    uint32_t bulk_tag       # while in FRAGMENTS: the element, and where its value began
    uint64_t bulk_at
    uint32_t pixel_tag      # Pixel Data, Float or Double Float Pixel Data at top level; 0 where none
    uint64_t pixel_at
    uint64_t pixel_length
    bint pixel_encapsulated
    Place offset_table      # Extended Offset Table, and its lengths
    Place offset_table_lengths
    Values upper            # patient, study and series
    Values own              # instance
    uint8_t[64] transfer_syntax
    uint32_t transfer_syntax_length
    bint transfer_syntax_seen

cdef uint64_t NEVER = <uint64_t>-1


cdef inline uint16_t u16(const uint8_t* p, bint big) noexcept nogil:
    if big:
        return <uint16_t>(p[0] << 8) | p[1]
    return p[0] | <uint16_t>(p[1] << 8)


cdef inline uint32_t u32(const uint8_t* p, bint big) noexcept nogil:
    if big:
        return (<uint32_t>u16(p, True) << 16) | u16(p + 2, True)
    return u16(p, False) | (<uint32_t>u16(p + 2, False) << 16)


cdef inline uint32_t tag_at(const uint8_t* p, bint big) noexcept nogil:
    return (<uint32_t>u16(p, big) << 16) | u16(p + 2, big)


cdef inline bint is_capital(uint8_t c) noexcept nogil:
    return 0x41 <= c <= 0x5A


cdef inline bint is_short_vr(uint16_t vr) noexcept nogil:
    """Whether the VR has an 8-byte header, PS3.5 7.1.2, Data Element Structure with Explicit VR, Table 7.1-2."""
    return vr in (
        0x4145, 0x4153, 0x4154, 0x4353, 0x4441, 0x4453, 0x4454,  # AE AS AT CS DA DS DT
        0x464C, 0x4644, 0x4953, 0x4C4F, 0x4C54, 0x504E, 0x5348,  # FL FD IS LO LT PN SH
        0x534C, 0x5353, 0x5354, 0x544D, 0x5549, 0x554C, 0x5553,  # SL SS ST TM UI UL US
    )


cdef inline bint is_long_vr(uint16_t vr) noexcept nogil:
    return vr in (
        0x4F42, 0x4F44, 0x4F46, 0x4F4C, 0x4F56, 0x4F57, 0x5351,  # OB OD OF OL OV OW SQ
        0x5543, 0x554E, 0x5552, 0x5554, 0x5356, 0x5556,          # UC UN UR UT SV UV
    )


cdef inline bint is_pixel_tag(uint32_t tag) noexcept nogil:
    return tag == 0x7FE00010 or tag == 0x7FE00008 or tag == 0x7FE00009


cdef bint is_sequence_tag(uint32_t tag) noexcept nogil:
    """Whether the dictionary of PS3.6 gives this tag the VR SQ: implicit VR does not say."""
    cdef int low = 0, high = SEQUENCE_TAG_COUNT, middle
    while low < high:
        middle = (low + high) >> 1
        if SEQUENCE_TAGS[middle] < tag:
            low = middle + 1
        else:
            high = middle
    return low < SEQUENCE_TAG_COUNT and SEQUENCE_TAGS[low] == tag


cdef inline bint in_window(Scan* s, uint64_t length) noexcept nogil:
    """Whether `length` bytes from s.at on are in the window; if not, ask for them."""
    if s.at >= s.base and s.at - s.base <= s.have and s.have - (s.at - s.base) >= length:
        return True
    s.need_at = s.at
    s.need_length = length
    return False


cdef inline bint has_value(Scan* s, uint64_t value_at, uint32_t length) noexcept nogil:
    """Whether the value of the element at s.at is in the window; if not, ask for the element with it."""
    if value_at >= s.base and value_at - s.base <= s.have and s.have - (value_at - s.base) >= length:
        return True
    s.need_at = s.at
    s.need_length = value_at - s.at + length
    return False


cdef inline uint64_t limit_of(Scan* s) noexcept nogil:
    """Where the innermost open sequence or item must have ended; never before s.at, never behind the file."""
    return s.open[s.depth - 1].limit if s.depth else s.total


cdef bint add_hole(Scan* s, uint64_t offset, uint64_t length, uint32_t tag) noexcept nogil:
    """Remember a hole. False only when memory is out; past hole_count_max the value stays in the head."""
    cdef Hole* grown
    cdef uint32_t room
    if s.hole_count >= s.hole_count_max:
        return True
    if s.hole_count == s.hole_room:
        room = s.hole_room * 2 if s.hole_room else 4
        grown = <Hole*>realloc(s.holes, room * sizeof(Hole))
        if grown == NULL:
            return False
        s.holes, s.hole_room = grown, room
    s.holes[s.hole_count] = Hole(offset, length, tag)
    s.hole_count += 1
    s.hole_bytes += length
    return True


cdef inline uint64_t known_hole(Scan* s, uint64_t value_at, uint64_t length_max) noexcept nogil:
    """Length of the hole that a head has at `value_at`; 0 where there is none.

    The bytes behind it follow at once in the window, so the window moves along with the read position.
    A hole that says it is longer than what can lie there is none, and the scan ends in NEED or a failure.
    """
    cdef uint64_t length
    while s.known_next < s.known_count and s.known[s.known_next].offset < value_at:
        s.known_next += 1       # it lies where no value begins: not the head that we made
    if s.known_next == s.known_count or s.known[s.known_next].offset != value_at:
        return 0
    length = s.known[s.known_next].length
    if length > length_max:
        return 0
    s.known_next += 1
    s.base += length
    return length


cdef bint add_fragment(Scan* s, uint64_t offset, uint64_t length) noexcept nogil:
    cdef Fragment* grown
    cdef uint32_t room
    if s.fragment_count == s.fragment_room:
        room = s.fragment_room * 2 if s.fragment_room else 8
        grown = <Fragment*>realloc(s.fragments, room * sizeof(Fragment))
        if grown == NULL:
            return False
        s.fragments, s.fragment_room = grown, room
    s.fragments[s.fragment_count] = Fragment(offset, length)
    s.fragment_count += 1
    return True


cdef void swap_words(uint8_t* p, uint32_t length, int width) noexcept nogil:
    cdef uint32_t i = 0
    cdef int k
    cdef uint8_t kept
    while i + width <= length:
        for k in range(width // 2):
            kept = p[i + k]
            p[i + k] = p[i + width - 1 - k]
            p[i + width - 1 - k] = kept
        i += width


cdef inline int word_width(uint16_t vr) noexcept nogil:
    """Bytes of one number of this VR; AT is two numbers of two; 0 for text and bytes."""
    if vr == 0x5553 or vr == 0x5353 or vr == 0x4154:                        # US SS AT
        return 2
    if vr == 0x554C or vr == 0x534C or vr == 0x464C:                        # UL SL FL
        return 4
    if vr == 0x4644 or vr == 0x5356 or vr == 0x5556:                        # FD SV UV
        return 8
    return 0


cdef bint emit(Scan* s, Values* values, uint32_t number, uint16_t our_vr, uint16_t vr,
               const uint8_t* value, uint32_t length) noexcept nogil:
    """Append one entry. Numbers leave as little endian. False only when memory is out."""
    cdef uint32_t extra = 0, needed, room
    cdef uint8_t* grown
    cdef uint8_t* p
    cdef uint8_t entry_flags = 0
    if vr and vr != our_vr and vr != 0x554E:    # UN of a known tag is read as our VR, PS3.5 6.2.2
        extra = 2
        entry_flags = HAS_VR
    if length > VALUE_MAX or values.size + length > VALUES_MAX:
        s.flags |= VALUE_LEFT
        if values.left[number]:
            return True         # said already; so an element that comes a million times costs no memory
        entry_flags |= IN_HEAD
        length = 0
    values.left[number] = entry_flags & IN_HEAD
    needed = values.size + 4 + extra + length
    if needed > values.room:
        room = values.room * 2 if values.room else 1024
        while room < needed:
            room *= 2
        grown = <uint8_t*>realloc(values.data, room)
        if grown == NULL:
            return False
        values.data = grown
        values.room = room
    p = values.data + values.size
    p[0] = <uint8_t>number
    p[1] = entry_flags
    p[2] = <uint8_t>((length + extra) & 0xFF)
    p[3] = <uint8_t>((length + extra) >> 8)
    if extra:
        p[4] = <uint8_t>(vr >> 8)
        p[5] = <uint8_t>(vr & 0xFF)
    if length:
        memcpy(p + 4 + extra, value, length)
        if s.big and word_width(vr if extra else our_vr):
            swap_words(p + 4 + extra, length, word_width(vr if extra else our_vr))
    values.size = needed
    return True


cdef Status capture(Scan* s, uint32_t tag, uint16_t vr, uint64_t value_at, uint32_t length) noexcept nogil:
    """Keep the value of a wanted element at top level. NEED when it is not in the window yet."""
    cdef const Wanted* wanted
    cdef const uint8_t* value = NULL
    if tag <= s.last_tag:
        s.next_wanted = 0               # out of order, or twice: the later one is emitted later and wins
    s.last_tag = tag
    while s.next_wanted < WANTED_COUNT and WANTED[s.next_wanted].tag < tag:
        s.next_wanted += 1
    if s.next_wanted == WANTED_COUNT or WANTED[s.next_wanted].tag != tag:
        return DONE
    if length <= VALUE_MAX:             # a longer one stays in the head, unread
        if not has_value(s, value_at, length):
            s.last_tag = 0
            return NEED
        value = s.data + (value_at - s.base)
    wanted = &WANTED[s.next_wanted]
    if wanted.level == LEVEL_INSTANCE or wanted.level == LEVEL_BOTH:
        if not emit(s, &s.own, s.next_wanted, wanted.vr, vr, value, length):
            return OUT_OF_MEMORY
    if wanted.level != LEVEL_INSTANCE:
        if not emit(s, &s.upper, s.next_wanted, wanted.vr, vr, value, length):
            return OUT_OF_MEMORY
    return DONE


cdef Status capture_nested(Scan* s, uint32_t tag, uint16_t vr, uint64_t value_at, uint32_t length) noexcept nogil:
    cdef uint32_t i
    cdef const uint8_t* value = NULL
    for i in range(<uint32_t>NESTED_COUNT):
        if NESTED[i].tag == tag:
            if length <= VALUE_MAX:
                if not has_value(s, value_at, length):
                    return NEED
                value = s.data + (value_at - s.base)
            if not emit(s, &s.upper, WANTED_COUNT + i, NESTED[i].vr, vr, value, length):
                return OUT_OF_MEMORY
    return DONE


cdef bint begins_like_a_data_set(Scan* s) noexcept nogil:
    """Whether a file without "DICM" is worth reading: its first element must be one that data sets begin with."""
    cdef const uint8_t* p = s.data + (s.at - s.base)
    cdef uint16_t group = u16(p, False), vr = u16(p + 4, True)
    cdef uint32_t length = u32(p + 4, False)
    if group == 0x0002 or group == 0x0008 or group == 0x0000 or group == 0x0004:
        if is_short_vr(vr) or is_long_vr(vr):
            return True
        return u16(p + 2, False) < 0x0100 and length <= 256 and length <= s.total - s.at - 8
    return u16(p, True) == 0x0008 and is_short_vr(vr)


cdef bint is_transfer_syntax(Scan* s, const char* uid, uint32_t length) noexcept nogil:
    return s.transfer_syntax_length == length and memcmp(s.transfer_syntax, uid, length) == 0


cdef inline bint is_deflated(Scan* s) noexcept nogil:
    return s.transfer_syntax_seen and is_transfer_syntax(s, b"1.2.840.10008.1.2.1.99", 22)


cdef Status begin_data_set(Scan* s) noexcept nogil:
    """Settle the encoding at s.at, behind the File Meta Information, and enter the data set.

    What is found there counts for more than what the Transfer Syntax UID says: files that lie about
    implicit and explicit VR are common, and the first VR gives them away.
    """
    cdef const uint8_t* p
    cdef uint16_t vr
    s.data_set_at = s.at
    s.phase = DATA_SET
    s.last_tag = 0
    s.next_wanted = 0
    s.implicit = False
    s.big = False
    if is_deflated(s):
        return DEFLATED
    if s.total - s.at < 8:
        return DONE
    if not in_window(s, 8):
        s.phase = META          # come back here with the bytes
        return NEED
    p = s.data + (s.at - s.base)
    vr = u16(p + 4, True)
    if not s.transfer_syntax_seen:
        s.implicit = not (is_short_vr(vr) or is_long_vr(vr))
        s.big = not s.implicit and u16(p, False) >= 1024
    else:
        s.implicit = is_transfer_syntax(s, b"1.2.840.10008.1.2", 17)
        s.big = is_transfer_syntax(s, b"1.2.840.10008.1.2.2", 19)
    s.implicit = not (is_capital(p[4]) and is_capital(p[5]))
    if s.implicit:
        s.flags |= IMPLICIT_VR
    if s.big:
        s.flags |= BIG_ENDIAN
    return DONE


cdef bint step_over(Scan* s) noexcept nogil:
    """After broken content: go on behind the outermost open sequence of known length, as if it were bytes.

    pydicom does the same, since it parses such a sequence only when it is asked for. False where
    there is none: then the fault is the whole data set's. Always goes forward: nothing in a sequence
    passes its end, so the bytes behind it have not been read yet.
    """
    cdef Open* sequence
    if s.depth == 0 or s.open[s.depth - 1].outermost == 0:
        return False
    s.depth = s.open[s.depth - 1].outermost - 1
    sequence = &s.open[s.depth]
    s.at = sequence.end
    s.implicit, s.big = sequence.implicit, sequence.big
    s.hole_count, s.hole_bytes = sequence.hole_count, sequence.hole_bytes
    s.upper.size = sequence.upper_size
    memset(&s.upper.left[WANTED_COUNT], 0, NESTED_COUNT)
    s.flags |= OPAQUE_SEQUENCE
    return True


cdef Status read_fragments(Scan* s) noexcept nogil:
    """Walk the items of an encapsulated value, PS3.5 A.4, Transfer Syntaxes For Encapsulation of Encoded Pixel Data.

    Broken or missing items end the value with the file, marked: the head in front of them is whole.
    """
    cdef const uint8_t* p
    cdef uint32_t tag, length
    cdef uint64_t value_end, limit = limit_of(s)
    cdef bint top = s.depth == 0
    if s.known_count and s.at == s.bulk_at:
        s.at += known_hole(s, s.at, limit - s.at)
        if s.at == s.total and top:
            return end_of_fragments(s, s.total, True)
    while True:
        if limit - s.at < 8:
            break
        if not in_window(s, 8):
            return NEED
        p = s.data + (s.at - s.base)
        tag = tag_at(p, s.big)
        length = u32(p + 4, s.big)
        if tag == SEQUENCE_END:
            value_end = s.at
            s.at += 8
            return end_of_fragments(s, value_end, False)
        if tag != ITEM or length == UNDEFINED or length > limit - s.at - 8:
            if tag == ITEM and length != UNDEFINED and top and s.bulk_tag == 0x7FE00010:
                if not add_fragment(s, s.at - s.bulk_at, limit - s.at - 8):
                    return OUT_OF_MEMORY
            break
        if top and s.bulk_tag == 0x7FE00010:
            if s.fragment_count == FRAGMENT_COUNT_MAX:
                return TOO_MANY_FRAGMENTS
            if not add_fragment(s, s.at - s.bulk_at, length):
                return OUT_OF_MEMORY
        s.at += 8 + <uint64_t>length
    if not top:
        return TRUNCATED
    s.at = s.total
    return end_of_fragments(s, s.total, True)


cdef Status end_of_fragments(Scan* s, uint64_t value_end, bint truncated) noexcept nogil:
    cdef uint64_t length = value_end - s.bulk_at
    cdef uint64_t bulk_min = BULK_MIN
    if s.depth == 0 and is_pixel_tag(s.bulk_tag):
        s.pixel_tag = s.bulk_tag
        s.pixel_at = s.bulk_at
        s.pixel_length = length
        s.pixel_encapsulated = True
        if truncated:
            s.flags |= PIXELS_TRUNCATED
    elif truncated:
        return TRUNCATED
    s.phase = DATA_SET
    if is_pixel_tag(s.bulk_tag):
        bulk_min = PIXEL_BULK_MIN
    if length >= bulk_min:
        if not add_hole(s, s.bulk_at, length, s.bulk_tag):
            return OUT_OF_MEMORY
    return DONE


cdef Status leave_fragments(Scan* s, Status status) noexcept nogil:
    """What read_fragments gave, unless it is a failure inside of a sequence that can be stepped over."""
    if status == TRUNCATED and step_over(s):
        s.phase = DATA_SET
        return DONE
    return status


cdef Status push(Scan* s, uint32_t tag, uint64_t end) noexcept nogil:
    """Open a sequence or an item. The caller has seen that `end` is not behind that of what is open."""
    cdef uint32_t outermost = s.open[s.depth - 1].outermost if s.depth else 0
    if s.depth == DEPTH_MAX:
        return NESTED_TOO_DEEP
    if outermost == 0 and tag != ITEM and end != NEVER:
        outermost = s.depth + 1
    s.open[s.depth] = Open(end, limit_of(s) if end == NEVER else end, s.hole_bytes, s.hole_count, s.upper.size,
                           tag, outermost, s.implicit, s.big)
    s.depth += 1
    return DONE


cdef inline void pop(Scan* s) noexcept nogil:
    s.depth -= 1
    s.implicit = s.open[s.depth].implicit
    s.big = s.open[s.depth].big


cdef Status read_start(Scan* s) noexcept nogil:
    cdef uint64_t size = s.total if s.total < 144 else 144
    cdef const uint8_t* p
    if s.known_count and s.known[0].offset < size:
        size = s.known[0].offset        # a head has no more in front of its first hole
    if size < 8:
        return NOT_DICOM
    if not in_window(s, size):
        return NEED
    if size >= 132 and memcmp(s.data + 128, b"DICM", 4) == 0:
        s.flags |= PART10
        s.at = 132
        if size - s.at < 8:
            s.tag = 0
            return TRUNCATED
    elif not begins_like_a_data_set(s):
        return NOT_DICOM
    p = s.data + s.at
    s.phase = META
    s.implicit = not (is_capital(p[4]) and is_capital(p[5]))
    return DONE


cdef Status read_elements(Scan* s) noexcept nogil:
    """Run until the end, a failure, or bytes that are not in the window."""
    cdef const uint8_t* p
    cdef uint32_t tag, length, header
    cdef uint16_t vr
    cdef uint64_t remaining, limit
    cdef Status status
    cdef bint is_sequence, top

    if s.phase == START:
        status = read_start(s)
        if status != DONE:
            return status
    if s.phase == FRAGMENTS:
        status = leave_fragments(s, read_fragments(s))
        if status != DONE:
            return status

    while True:
        while s.depth and s.at == s.open[s.depth - 1].limit:
            if s.open[s.depth - 1].end != NEVER:
                pop(s)
            elif not step_over(s):      # undefined length, and no delimiter before the end of what is around it
                return TRUNCATED if s.at == s.total else OVERRUN
        if s.at - s.hole_bytes > HEAD_MAX:
            return HEAD_TOO_LONG
        limit = limit_of(s)
        remaining = limit - s.at
        top = s.depth == 0
        if remaining < 8 - HILUM_PLANTED:
            if not top:
                if not step_over(s):
                    return TRUNCATED if limit == s.total else OVERRUN
                continue
            if remaining:
                s.flags |= TRAILING_BYTES
            if s.phase != DATA_SET:
                s.data_set_at = s.at
            return DONE
        if not in_window(s, 8 - HILUM_PLANTED):
            if s.phase == META and s.known_next < s.known_count and s.known[s.known_next].offset == s.at:
                return begin_data_set(s)    # the head of a deflated file: all behind this is a hole
            return NEED
        p = s.data + (s.at - s.base)
        tag = tag_at(p, s.big)
        s.tag = tag

        if s.phase != DATA_SET:
            if s.phase == META and (tag >> 16) != 0x0002:
                if (tag >> 16) == 0x0000 and s.at != 0 and not is_deflated(s):
                    s.phase = COMMAND
                    s.implicit = True
                else:
                    status = begin_data_set(s)
                    if status != DONE:
                        return status
                    continue
            if s.phase == COMMAND and (tag >> 16) != 0x0000:
                status = begin_data_set(s)
                if status != DONE:
                    return status
                continue
        elif (tag >> 16) == 0xFFFE:
            length = u32(p + 4, s.big)
            if not top and s.open[s.depth - 1].tag != ITEM:         # between two items of a sequence
                if tag == ITEM:
                    s.at += 8
                    if length == UNDEFINED:
                        status = push(s, ITEM, NEVER)
                    elif length > limit - s.at:
                        s.at -= 8
                        if not step_over(s):
                            return OVERRUN
                        continue
                    else:
                        status = push(s, ITEM, s.at + length)
                    if status != DONE:
                        if not step_over(s):
                            return status
                        continue
                    if not s.implicit and length != 0:
                        # An item of an explicit VR data set may still be implicit: UN of undefined
                        # length is, PS3.5 6.2.2 Note 2, and some writers switch without a word.
                        if limit - s.at < 8:
                            continue
                        if not in_window(s, 8):
                            pop(s)
                            s.at -= 8
                            s.need_at = s.at
                            s.need_length = 16
                            return NEED
                        p = s.data + (s.at - s.base)
                        if tag_at(p, s.big) != ITEM_END:
                            s.implicit = not (is_capital(p[4]) and is_capital(p[5]))
                    continue
                if tag == SEQUENCE_END and s.open[s.depth - 1].end == NEVER:
                    s.at += 8
                    pop(s)
                    continue
            elif tag == ITEM_END and not top and s.open[s.depth - 1].end == NEVER:
                s.at += 8
                pop(s)
                continue
            elif top and tag == SEQUENCE_END and length == 0:
                s.at += 8           # left over by writers that end a sequence of known length twice
                continue
            if not step_over(s):
                return UNBALANCED
            continue
        elif not top and s.open[s.depth - 1].tag != ITEM:
            if s.big and tag_at(p, False) == ITEM:
                s.big = False       # UN is little endian in any transfer syntax, PS3.5 6.2.2 Note 2
            elif not step_over(s):
                return UNBALANCED
            continue

        if s.implicit:
            header, length, vr = 8, u32(p + 4, s.big), 0
        else:
            vr = u16(p + 4, True)
            if is_short_vr(vr):
                header, length = 8, u16(p + 6, s.big)
            elif is_long_vr(vr) or (is_capital(p[4]) and is_capital(p[5]) and p[6] == 0 and p[7] == 0):
                # A VR that we do not know has the long header, PS3.5 7.1.2, unless its bytes say otherwise.
                if remaining < 12:
                    if not step_over(s):
                        return TRUNCATED
                    continue
                if not in_window(s, 12):
                    return NEED
                p = s.data + (s.at - s.base)
                header, length = 12, u32(p + 8, s.big)
            elif 0x4141 <= vr <= 0x5A5A:                        # "AA" to "ZZ", pydicom's bounds
                header, length = 8, u16(p + 6, s.big)
            else:
                header, length, vr = 8, u32(p + 4, s.big), 0    # a writer that left explicit VR for an element

        if length == UNDEFINED:
            if s.phase != DATA_SET:
                return UNBALANCED       # PS3.10 7.1: no sequence stands in File Meta Information
            if vr == 0x5351:                                        # SQ
                is_sequence = True
            elif is_pixel_tag(tag):
                is_sequence = False
            elif vr == 0x554E:                                      # UN
                is_sequence = True
            elif vr and vr != 0x5554 and vr != 0x5543 and vr != 0x5552:     # UT UC UR
                is_sequence = False
            elif is_sequence_tag(tag):
                is_sequence = True
            else:
                if remaining < header + 4:
                    if not step_over(s):
                        return TRUNCATED
                    continue
                if not in_window(s, header + 4):
                    return NEED
                p = s.data + (s.at - s.base)
                if tag_at(p + header, s.big) != ITEM:
                    if not step_over(s):
                        return UNDEFINED_LENGTH
                    continue
                is_sequence = True
            if is_sequence:
                status = push(s, tag, NEVER)
                if status != DONE:
                    if not step_over(s):
                        return status
                    continue
                s.at += header
                continue
            s.at += header
            s.phase = FRAGMENTS
            s.bulk_tag = tag
            s.bulk_at = s.at
            if top:
                s.fragment_count = 0        # of an earlier Pixel Data: the last one counts
            status = leave_fragments(s, read_fragments(s))
            if status != DONE:
                return status
            continue

        if remaining < header or length > remaining - header:           # subtract, never add: no overflow
            if top and is_pixel_tag(tag) and remaining >= header:
                s.pixel_tag, s.pixel_at = tag, s.at + header
                s.pixel_length = s.total - s.pixel_at
                s.flags |= PIXELS_TRUNCATED
                if s.pixel_length >= PIXEL_BULK_MIN and not add_hole(s, s.pixel_at, s.pixel_length, tag):
                    return OUT_OF_MEMORY
                s.at = s.total
                return DONE
            if not step_over(s):
                return TRUNCATED if top or limit == s.total else OVERRUN
            continue

        if (length >= PIXEL_BULK_MIN or tag == REQUEST_ATTRIBUTES) and s.phase == DATA_SET:
            is_sequence = vr == 0x5351 or ((vr == 0 or vr == 0x554E) and is_sequence_tag(tag))
            if is_sequence and length:
                status = push(s, tag, s.at + header + length)
                if status != DONE:
                    if not step_over(s):
                        return status
                    continue
                s.at += header
                if vr == 0x554E:
                    s.implicit = True
                continue
        if s.known_count:
            # Never longer than the value: behind an empty last element of the meta lies a deflated data set.
            known_hole(s, s.at + header, length)
        if is_pixel_tag(tag):
            if top:
                s.pixel_tag, s.pixel_at, s.pixel_length = tag, s.at + header, length
                s.pixel_encapsulated = False
                if s.big and vr == 0x4F57:                          # OW
                    s.flags |= PIXEL_WORDS
            if length >= PIXEL_BULK_MIN and not add_hole(s, s.at + header, length, tag):
                return OUT_OF_MEMORY
        elif s.phase != DATA_SET:
            if tag == 0x00020010:
                status = keep_transfer_syntax(s, s.at + header, length)
                if status != DONE:
                    return status
        elif top:
            if tag == 0x7FE00001:
                s.offset_table = Place(s.at + header, length)
            elif tag == 0x7FE00002:
                s.offset_table_lengths = Place(s.at + header, length)
            if length >= BULK_MIN:
                if not add_hole(s, s.at + header, length, tag):
                    return OUT_OF_MEMORY
            else:
                status = capture(s, tag, vr, s.at + header, length)
                if status != DONE:
                    return status
        elif length >= BULK_MIN:
            if not add_hole(s, s.at + header, length, tag):
                return OUT_OF_MEMORY
        elif s.depth == 2 and s.open[0].tag == REQUEST_ATTRIBUTES:
            status = capture_nested(s, tag, vr, s.at + header, length)
            if status != DONE:
                return status
        s.at += header + <uint64_t>length


cdef Status keep_transfer_syntax(Scan* s, uint64_t value_at, uint32_t length) noexcept nogil:
    cdef const uint8_t* value
    if length > 64:
        length = 64         # no UID is longer; what is cut matches nothing that we know, as it should
    if not has_value(s, value_at, length):
        return NEED
    value = s.data + (value_at - s.base)
    while length and (value[length - 1] == 0 or value[length - 1] == 0x20):
        length -= 1
    memcpy(s.transfer_syntax, value, length)
    s.transfer_syntax_length = length
    s.transfer_syntax_seen = True
    return DONE


# --- Python boundary ---------------------------------------------------------

STATUS_DONE = DONE
STATUS_NEED = NEED
STATUS_DEFLATED = DEFLATED
STATUS_NOT_DICOM = NOT_DICOM
STATUS_UNDEFINED_LENGTH = UNDEFINED_LENGTH

HEAD_BYTES_MAX = HEAD_MAX
VALUE_BYTES_MAX = VALUE_MAX
VALUES_BYTES_MAX = VALUES_MAX

FLAG_PART10 = PART10
FLAG_IMPLICIT_VR = IMPLICIT_VR
FLAG_BIG_ENDIAN = BIG_ENDIAN
FLAG_PIXELS_TRUNCATED = PIXELS_TRUNCATED
FLAG_OPAQUE_SEQUENCE = OPAQUE_SEQUENCE
FLAG_VALUE_LEFT = VALUE_LEFT
FLAG_PIXEL_WORDS = PIXEL_WORDS

ENTRY_HAS_VR = HAS_VR
ENTRY_IN_HEAD = IN_HEAD


cdef bytes _value_of(Values* values, uint8_t number):
    """The last entry of this number, without its padding; b"" where there is none."""
    cdef uint32_t at = 0, length, extra
    cdef const uint8_t* found = NULL
    cdef uint32_t found_length = 0
    while at < values.size:
        length = values.data[at + 2] | (<uint32_t>values.data[at + 3] << 8)
        if values.data[at] == number:
            extra = 2 if values.data[at + 1] & HAS_VR else 0
            found = values.data + at + 4 + extra
            found_length = length - extra
        at += 4 + length
    while found_length and (found[found_length - 1] == 0 or found[found_length - 1] == 0x20):
        found_length -= 1
    return PyBytes_FromStringAndSize(<const char*>found, found_length)


cdef class Header:
    """One scan: how far it is, and what it has found. Made by `scan`, or fed window by window.

    feed() may be called again only after STATUS_NEED, with at least the bytes that `need` names.
    """

    cdef Scan* s

    def __cinit__(self, total: int):
        self.s = <Scan*>malloc(sizeof(Scan))
        if self.s == NULL:
            raise MemoryError
        cdef Scan* s = self.s
        s.total = total
        s.base = s.have = s.at = s.need_at = s.need_length = s.data_set_at = 0
        s.tag = s.flags = s.next_wanted = s.last_tag = s.depth = 0
        s.phase = START
        s.implicit = s.big = s.transfer_syntax_seen = s.pixel_encapsulated = False
        s.hole_bytes = 0
        s.holes, s.hole_count, s.hole_room = NULL, 0, 0
        s.hole_count_max = HOLE_COUNT_MAX
        s.known, s.known_count, s.known_next = NULL, 0, 0
        s.fragments, s.fragment_count, s.fragment_room = NULL, 0, 0
        s.bulk_tag, s.bulk_at = 0, 0
        s.pixel_tag, s.pixel_at, s.pixel_length = 0, 0, 0
        s.offset_table = Place(0, 0)
        s.offset_table_lengths = Place(0, 0)
        memset(&s.upper, 0, sizeof(Values))
        memset(&s.own, 0, sizeof(Values))
        s.transfer_syntax_length = 0

    def __dealloc__(self):
        if self.s != NULL:
            free(self.s.holes)
            free(self.s.known)
            free(self.s.fragments)
            free(self.s.upper.data)
            free(self.s.own.data)
            free(self.s)

    def feed(self, const uint8_t[::1] window not None, uint64_t base):
        """Go on with the file's bytes from `base` on; return the status. Keeps no reference to them."""
        self.s.data = &window[0] if window.shape[0] else NULL
        self.s.base = base
        self.s.have = window.shape[0]
        # The GIL is kept: a scan takes microseconds, and a thread that gives the GIL up beside a
        # busy one waits for it up to the switch interval, 5 ms.
        cdef Status status = read_elements(self.s)
        self.s.data = NULL
        self.s.have = 0
        return <int>status

    def know_holes(self, list holes not None):
        """Say that what will be fed is a head: the file without these (offset, length), ascending.

        Offsets stay those of the file. Feed the whole head at once, from 0 on.
        """
        cdef Scan* s = self.s
        cdef Py_ssize_t i
        free(s.known)
        s.known, s.known_count, s.known_next = NULL, 0, 0
        if not holes:
            return
        s.known = <Hole*>malloc(len(holes) * sizeof(Hole))
        if s.known == NULL:
            raise MemoryError
        for i in range(len(holes)):
            s.known[i] = Hole(holes[i][0], holes[i][1], 0)
        s.known_count = len(holes)

    def begin_inflated(self, total: int):
        """After STATUS_DEFLATED: go on with the inflated data set, of at most `total` bytes; offsets begin at 0.

        The head of the file so far is what lay before the deflated bytes.
        """
        cdef Scan* s = self.s
        s.at, s.total, s.phase, s.data_set_at = 0, total, DATA_SET, 0
        s.implicit = s.big = False
        s.depth = s.hole_count = s.fragment_count = s.known_count = 0
        s.hole_count_max = INFLATED_HOLE_COUNT_MAX
        s.hole_bytes = 0

    @property
    def need(self):
        """(offset, length) of the bytes that STATUS_NEED asks for."""
        return self.s.need_at, self.s.need_length

    @property
    def at(self):
        return self.s.at

    @property
    def tag(self):
        return self.s.tag

    @property
    def flags(self):
        return self.s.flags

    @property
    def data_set_at(self):
        """Offset of the first byte after the File Meta Information."""
        return self.s.data_set_at

    @property
    def transfer_syntax(self):
        """Transfer Syntax UID (0002,0010) without padding; None where the file has none."""
        if not self.s.transfer_syntax_seen:
            return None
        return PyBytes_FromStringAndSize(<const char*>self.s.transfer_syntax, self.s.transfer_syntax_length)

    @property
    def holes(self):
        """[(offset, length, tag)], ascending."""
        return [(self.s.holes[i].offset, self.s.holes[i].length, self.s.holes[i].tag)
                for i in range(self.s.hole_count)]

    @property
    def hole_count(self):
        return self.s.hole_count

    @property
    def pixels(self):
        """(tag, offset, length, encapsulated) of the pixel element at top level; None where there is none."""
        if not self.s.pixel_tag:
            return None
        return self.s.pixel_tag, self.s.pixel_at, self.s.pixel_length, bool(self.s.pixel_encapsulated)

    @property
    def fragments(self):
        """[(offset, length)] of the items of Pixel Data, the Basic Offset Table first.

        `offset` is the item header's, from the start of the Pixel Data value; `length` is the item value's.
        """
        return [(self.s.fragments[i].offset, self.s.fragments[i].length) for i in range(self.s.fragment_count)]

    @property
    def extended_offset_table(self):
        """((offset, length), (offset, length)) of (7FE0,0001) and (7FE0,0002); lengths 0 where absent."""
        return ((self.s.offset_table.offset, self.s.offset_table.length),
                (self.s.offset_table_lengths.offset, self.s.offset_table_lengths.length))

    @property
    def upper(self):
        """Entries of the patient, study and series attributes; see engine/record.py for their form."""
        return PyBytes_FromStringAndSize(<const char*>self.s.upper.data, self.s.upper.size)

    @property
    def own(self):
        """Entries of the instance's own attributes."""
        return PyBytes_FromStringAndSize(<const char*>self.s.own.data, self.s.own.size)

    @property
    def uids(self):
        """(study, series, SOP instance, SOP class) as bytes without padding; b"" where absent."""
        return (_value_of(&self.s.upper, NUMBER_OF_STUDY), _value_of(&self.s.upper, NUMBER_OF_SERIES),
                _value_of(&self.s.own, NUMBER_OF_INSTANCE), _value_of(&self.s.own, NUMBER_OF_CLASS))


def scan(const uint8_t[::1] data not None):
    """Scan a whole file in memory; return (status, Header). NEED never comes back."""
    cdef Header header = Header(data.shape[0])
    return header.feed(data, 0), header


cdef Status scan_file(Scan* s, int fd, int* failure) noexcept nogil:
    """Scan through a window that is read where the scan asks for it. `failure` is the errno of a read."""
    cdef uint64_t room = WINDOW, length, have
    cdef uint8_t* buffer = <uint8_t*>malloc(room)
    cdef uint8_t* grown
    cdef ssize_t got
    cdef Status status = NEED
    s.need_at, s.need_length = 0, WINDOW if s.total > WINDOW else s.total
    while status == NEED and failure[0] == 0:
        length = FRAGMENT_WINDOW if s.phase == FRAGMENTS else WINDOW
        if length < s.need_length:
            length = s.need_length
        if length > s.total - s.need_at:
            length = s.total - s.need_at
        if buffer != NULL and length > room:
            grown = <uint8_t*>realloc(buffer, length)
            if grown == NULL:
                free(buffer)
            buffer, room = grown, length
        if buffer == NULL:
            status = OUT_OF_MEMORY
            break
        have = 0
        while have < s.need_length:
            got = pread(fd, buffer + have, length - have, <off_t>(s.need_at + have))
            if got > 0:
                have += <uint64_t>got
            elif got == 0:
                failure[0] = EIO
                break
            elif errno != EINTR:
                failure[0] = errno
                break
        if failure[0] == 0:
            s.data, s.base, s.have = buffer, s.need_at, have
            status = read_elements(s)
    s.data, s.have = NULL, 0
    free(buffer)
    return status


def scan_fd(int fd, uint64_t total):
    """Scan a file by its descriptor; return (status, Header). Reads the head, and jumps over the holes.

    A file with 200,000 fragments costs as many small reads, since their lengths lie between them. The GIL
    is given up once, not for each read: who gives it up beside a busy thread waits for it 5 ms.

    Raises:
        OSError: a read failed. A file that ends before `total` does too (EIO): it was cut under us.
    """
    cdef Header header = Header(total)
    cdef Status status
    cdef int failure = 0
    with nogil:
        status = scan_file(header.s, fd, &failure)
    if failure:
        raise OSError(failure, f"the file can't be read from byte {header.s.need_at} on, of {total}")
    return <int>status, header


def wanted():
    """Return [(tag, VR, level, inside Request Attributes Sequence)] by entry number; level 0 is in both."""
    table = [(WANTED[i].tag, chr(WANTED[i].vr >> 8) + chr(WANTED[i].vr & 255), WANTED[i].level, False)
             for i in range(WANTED_COUNT)]
    table += [(NESTED[i].tag, chr(NESTED[i].vr >> 8) + chr(NESTED[i].vr & 255), NESTED[i].level, True)
              for i in range(NESTED_COUNT)]
    return table


cdef uint8_t _number_of(uint32_t tag):
    for i in range(WANTED_COUNT):
        if WANTED[i].tag == tag:
            return i
    raise AssertionError(tag)


cdef uint8_t NUMBER_OF_STUDY = _number_of(0x0020000D)
cdef uint8_t NUMBER_OF_SERIES = _number_of(0x0020000E)
cdef uint8_t NUMBER_OF_INSTANCE = _number_of(0x00080018)
cdef uint8_t NUMBER_OF_CLASS = _number_of(0x00080016)


def find_entry(const uint8_t[::1] entries not None, uint8_t number):
    """Return (entry flags, bytes) of the last entry with this number, or None: a walk of some 100 ns."""
    cdef Py_ssize_t at = 0, size = entries.shape[0], found = -1
    cdef uint32_t length
    while at + 4 <= size:
        length = entries[at + 2] | (<uint32_t>entries[at + 3] << 8)
        if entries[at] == number:
            found = at
        at += 4 + length
    if found < 0:
        return None
    length = entries[found + 2] | (<uint32_t>entries[found + 3] << 8)
    if found + 4 + <Py_ssize_t>length > size:
        return None
    return entries[found + 1], PyBytes_FromStringAndSize(<const char*>&entries[0] + found + 4, length)

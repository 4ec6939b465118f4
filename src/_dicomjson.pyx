# cython: language_level=3, boundscheck=False, wraparound=False
# cython: initializedcheck=False, cdivision=True, embedsignature=True
"""Takes a stored head; gives it as a DICOM JSON Model object, UTF-8, or says where one of its values lies.
Reads no blob, keeps nothing between two calls but the data dictionary, and knows no store.

PS3.18 F.2, DICOM JSON Model. Above the line "Python boundary" all is `noexcept nogil` but for two calls: text
of a character set that is neither ASCII, Latin-1 nor UTF-8 goes through hilum.dicom.charset, and a binary
float with more than nine decimals through Python's own shortest form. No Python object is made for an element.

The walk is that of _fastparse, with the same rules of what is a sequence, and it goes forward only: one flat
loop over a stack of open sequences and items. What can't be walked inside of a sequence of known length
leaves as the bytes of that sequence, VR UN, so that nothing is dropped and nothing around it is lost.

`offset` and `at` are bytes from the start of the file (of the inflated data set for a deflated one). The head
is the file without its holes: what lies at `at` stands at `at - gone` in it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport floor, isfinite, isnan
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove

from functools import lru_cache

from hilum.dicom.charset import decode_text
from hilum.errors import BadDicom

cdef extern from "Python.h":
    char* PyOS_double_to_string(double value, char code, int precision, int flags, int* kind) except NULL
    void PyMem_Free(void* p)

cdef enum Status:
    GO_ON = 0
    DONE = 1
    TRUNCATED = 2         # an element header or a value runs past the end
    NESTED_TOO_DEEP = 3
    UNBALANCED = 4        # a delimiter without its item, or an element where an item must stand
    OVERRUN = 5           # a value runs past the end of the item that holds it
    BAD_HOLE = 6          # a hole where no value begins, or of another length than the value
    TOO_LONG = 7          # the document passes all bounds
    OUT_OF_MEMORY = 8

cdef enum:
    DEPTH_MAX = 512                 # as _fastparse has it
    UNDEFINED = 0xFFFFFFFF          # PS3.5 7.1.1, Data Element Fields: Value Length
    ITEM = 0xFFFEE000
    ITEM_END = 0xFFFEE00D
    SEQUENCE_END = 0xFFFEE0DD
    NUMBER_MAX = 256                # bytes of a DS or IS that leaves as a number: more is a string
    CHARSETS_MAX = 16               # character sets of one data set that are asked for; any further is the default
    DICTIONARY_BITS = 14
    DICTIONARY_SIZE = 1 << DICTIONARY_BITS

cdef enum Vr:                       # two characters, first one in the high byte
    AE = 0x4145
    AS = 0x4153
    AT = 0x4154
    CS = 0x4353
    DA = 0x4441
    DS = 0x4453
    DT = 0x4454
    FD = 0x4644
    FL = 0x464C
    IS = 0x4953
    LO = 0x4C4F
    LT = 0x4C54
    OB = 0x4F42
    OD = 0x4F44
    OF = 0x4F46
    OL = 0x4F4C
    OV = 0x4F56
    OW = 0x4F57
    PN = 0x504E
    SH = 0x5348
    SL = 0x534C
    SQ = 0x5351
    SS = 0x5353
    ST = 0x5354
    SV = 0x5356
    TM = 0x544D
    UC = 0x5543
    UI = 0x5549
    UL = 0x554C
    UN = 0x554E
    UR = 0x5552
    US = 0x5553
    UT = 0x5554
    UV = 0x5556
    # What the dictionary leaves open.
    US_OR_SS = 1
    OB_OR_OW = 2
    US_OR_OW = 3
    US_OR_SS_OR_OW = 4

cdef enum Charset:
    LATIN_1 = 0         # the default one too: bytes above 7F are taken for Latin-1
    UTF_8 = 1
    ASCII_ELSE = 2      # ASCII is itself, and anything above it is asked of hilum.dicom.charset
    OTHER = 3           # all is asked

cdef enum:
    ALL = -1            # nodes of a level beside those of Paths
    NONE = -2

cdef struct Hole:
    uint64_t offset
    uint64_t length

cdef struct Node:       # one step of a wanted path
    uint32_t tag
    uint32_t mask       # private elements match in any block
    const uint8_t* creator      # of this creator; NULL for none
    uint32_t creator_length
    int32_t child       # first child; ALL where the path ends here
    int32_t sibling

cdef struct Creator:    # a Private Creator (gggg,0010-00FF) that has gone by
    uint32_t tag
    const uint8_t* value
    uint32_t length

cdef struct Member:     # an attribute object that was written
    uint32_t tag
    uint32_t order
    uint64_t begin

cdef struct Level:      # a data set: the root, or an item
    uint32_t last_tag
    uint32_t members    # how many members of others had been written before
    uint32_t creators
    bint disordered
    bint has_members
    const uint8_t* charset
    uint32_t charset_length
    Charset kind
    int signed_pixels   # Pixel Representation; -1 unknown
    int lut_length      # first value of LUT Descriptor; -1 unknown
    int32_t node

cdef struct Open:       # a sequence or an item that has begun and not ended
    uint64_t end        # where it ends; NEVER for undefined length
    uint64_t limit      # the nearest known end: nothing in it passes that
    uint64_t value_at   # of a sequence
    uint64_t out_size   # when it began, to go back to
    uint32_t tag        # of the sequence; ITEM for an item
    uint32_t item       # of a sequence: how many items have begun
    uint32_t next_hole
    uint32_t members
    uint32_t creators
    int32_t node        # of a sequence: that of its items
    bint had_members
    bint implicit       # encoding outside it, to go back to
    bint big

cdef struct Asked:      # a value of (0008,0005), and what it is
    const uint8_t* value
    uint32_t length
    Charset kind

cdef struct Found:      # what a search by path gives
    bint there
    bint hole
    bint encapsulated
    bint big
    uint16_t vr
    uint64_t offset
    uint64_t length
    const uint8_t* charset
    uint32_t charset_length

cdef struct Walk:
    const uint8_t* data
    uint64_t size
    uint64_t total          # bytes in the file: of the head and of its holes
    const Hole* holes
    uint32_t hole_count
    uint32_t next_hole
    uint64_t gone           # bytes of the holes that lie before `at`
    uint64_t at
    uint32_t tag
    bint implicit
    bint big
    uint32_t depth
    Open[DEPTH_MAX] open
    uint32_t level          # the innermost data set
    Level[DEPTH_MAX + 1] levels
    const Node* nodes
    uint32_t stop_after     # no tag behind this one is wanted at top level
    uint32_t* items         # in a search by path: the item wanted of each sequence
    bint searching
    Found found
    bint charset_wanted     # (0008,0005) of the answer has not been written yet
    const uint8_t* prefix   # of BulkDataURI, escaped already
    uint64_t prefix_length
    uint64_t inline_max
    uint8_t* out
    uint64_t out_size
    uint64_t out_room
    uint64_t out_max
    uint64_t sorted_bytes   # copied to put attributes in order: bounded by out_max, as the output is
    bint out_of_memory
    bint too_long
    Member* members
    uint32_t member_count
    uint32_t member_room
    Creator* creators
    uint32_t creator_count
    uint32_t creator_room
    Asked[CHARSETS_MAX] asked
    uint32_t asked_count
    uint8_t* text           # UTF-8 of the last value that Python decoded
    uint64_t text_room
    uint64_t text_size

cdef uint64_t NEVER = <uint64_t>-1

cdef struct Entry:
    uint32_t tag
    uint16_t vr

cdef Entry[DICTIONARY_SIZE] DICTIONARY

cdef enum:
    REPEATING_MAX = 128

cdef struct Repeating:
    uint32_t mask
    uint32_t value
    uint16_t vr

cdef Repeating[REPEATING_MAX] REPEATING
cdef uint32_t repeating_count = 0

cdef const char* HEX = "0123456789ABCDEF"
cdef const char* LOWER_HEX = "0123456789abcdef"
cdef const char* BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
cdef const char* DIGITS = (
    "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849"
    "5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899"
)
cdef uint8_t[256] PLAIN     # 1: this byte stands in a JSON string as it is, in any of our encodings
cdef double[10] POWERS = [1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9]


# --- Bytes -------------------------------------------------------------------


cdef inline uint16_t u16(const uint8_t* p, bint big) noexcept nogil:
    if big:
        return <uint16_t>(p[0] << 8) | p[1]
    return p[0] | <uint16_t>(p[1] << 8)


cdef inline uint32_t u32(const uint8_t* p, bint big) noexcept nogil:
    if big:
        return (<uint32_t>u16(p, True) << 16) | u16(p + 2, True)
    return u16(p, False) | (<uint32_t>u16(p + 2, False) << 16)


cdef inline uint64_t u64(const uint8_t* p, bint big) noexcept nogil:
    if big:
        return (<uint64_t>u32(p, True) << 32) | u32(p + 4, True)
    return u32(p, False) | (<uint64_t>u32(p + 4, False) << 32)


cdef inline uint32_t tag_at(const uint8_t* p, bint big) noexcept nogil:
    return (<uint32_t>u16(p, big) << 16) | u16(p + 2, big)


cdef inline bint is_capital(uint8_t c) noexcept nogil:
    return 0x41 <= c <= 0x5A


cdef inline bint is_space(uint8_t c) noexcept nogil:
    """What str.strip() takes away, in Latin-1."""
    return c == 0x20 or 9 <= c <= 13 or 28 <= c <= 31 or c == 0x85 or c == 0xA0


cdef inline bint is_short_vr(uint16_t vr) noexcept nogil:
    """Whether the VR has an 8-byte header, PS3.5 7.1.2, Data Element Structure with Explicit VR, Table 7.1-2."""
    return vr in (AE, AS, AT, CS, DA, DS, DT, FL, FD, IS, LO, LT, PN, SH, SL, SS, ST, TM, UI, UL, US)


cdef inline bint is_long_vr(uint16_t vr) noexcept nogil:
    return vr in (OB, OD, OF, OL, OV, OW, SQ, UC, UN, UR, UT, SV, UV)


cdef inline bint is_pixel_tag(uint32_t tag) noexcept nogil:
    return tag == 0x7FE00010 or tag == 0x7FE00008 or tag == 0x7FE00009


cdef inline uint32_t slot_of(uint32_t tag) noexcept nogil:
    return (tag * <uint32_t>2654435761) >> (32 - DICTIONARY_BITS)


cdef uint16_t dictionary_vr(uint32_t tag) noexcept nogil:
    """VR of a tag as PS3.6 has it, or what it leaves open; UN for what it doesn't know."""
    cdef uint32_t slot = slot_of(tag), i
    while DICTIONARY[slot].vr:
        if DICTIONARY[slot].tag == tag:
            return DICTIONARY[slot].vr
        slot = (slot + 1) & (DICTIONARY_SIZE - 1)
    if (tag >> 16) & 1:
        return LO if 0x10 <= (tag & 0xFFFF) <= 0xFF else UN     # PS3.5 7.8.1, Private Data Element Tags
    for i in range(repeating_count):
        if tag & REPEATING[i].mask == REPEATING[i].value:
            return REPEATING[i].vr
    return UN


# --- Output ------------------------------------------------------------------


cdef bint grow(Walk* w, uint64_t more) noexcept nogil:
    cdef uint64_t room = w.out_room
    cdef uint8_t* grown
    if w.out_of_memory or w.too_long:
        return False
    if more > w.out_max or w.out_size > w.out_max - more:
        w.too_long = True
        return False
    while room - w.out_size < more:
        room *= 2
    grown = <uint8_t*>realloc(w.out, room)
    if grown == NULL:
        w.out_of_memory = True
        return False
    w.out, w.out_room = grown, room
    return True


cdef inline bint has_room(Walk* w, uint64_t more) noexcept nogil:
    """Whether `more` bytes may be put at w.out + w.out_size. Once false, it stays so for all that needs growth."""
    return w.out_room - w.out_size >= more or grow(w, more)


cdef inline void put(Walk* w, const char* text, uint64_t length) noexcept nogil:
    if has_room(w, length):
        memcpy(w.out + w.out_size, text, length)
        w.out_size += length


cdef inline void put_hex32(uint8_t* o, uint32_t value) noexcept nogil:
    cdef int i
    for i in range(8):
        o[i] = HEX[(value >> (28 - 4 * i)) & 15]


cdef inline uint8_t* put_unsigned(uint8_t* o, uint64_t value) noexcept nogil:
    """At most 20 bytes."""
    cdef uint8_t[20] digits
    cdef int at = 20
    cdef uint64_t pair
    while value >= 100:
        pair = value % 100
        value //= 100
        at -= 2
        digits[at] = DIGITS[2 * pair]
        digits[at + 1] = DIGITS[2 * pair + 1]
    if value >= 10:
        at -= 2
        digits[at] = DIGITS[2 * value]
        digits[at + 1] = DIGITS[2 * value + 1]
    else:
        at -= 1
        digits[at] = <uint8_t>(0x30 + value)
    memcpy(o, digits + at, 20 - at)
    return o + 20 - at


cdef inline uint8_t* put_signed(uint8_t* o, int64_t value) noexcept nogil:
    if value < 0:
        o[0] = c"-"
        return put_unsigned(o + 1, <uint64_t>0 - <uint64_t>value)
    return put_unsigned(o, <uint64_t>value)


cdef uint8_t* put_escaped(uint8_t* o, const uint8_t* p, uint64_t length, bint utf8) noexcept nogil:
    """The inside of a JSON string, RFC 8259 section 7, Strings; at most six bytes for each of `p`."""
    cdef const uint8_t* end = p + length
    cdef uint8_t c
    while p < end:
        c = p[0]
        p += 1
        if PLAIN[c] or (utf8 and c >= 0x80):
            o[0] = c
            o += 1
        elif c >= 0x80:
            o[0] = 0xC0 | (c >> 6)
            o[1] = 0x80 | (c & 0x3F)
            o += 2
        else:
            o[0] = c"\\"
            if c == c'"' or c == c"\\":
                o[1] = c
            elif c == 10:
                o[1] = c"n"
            elif c == 13:
                o[1] = c"r"
            elif c == 9:
                o[1] = c"t"
            else:
                memcpy(o + 1, b"u00", 3)
                o[4] = LOWER_HEX[c >> 4]
                o[5] = LOWER_HEX[c & 15]
                o += 4
            o += 2
    return o


cdef void put_base64(Walk* w, const uint8_t* p, uint64_t length, int width) noexcept nogil:
    """The bytes as base64, words of `width` bytes turned round first (1: as they are)."""
    cdef uint64_t i
    cdef uint8_t* o
    cdef uint8_t* turned = NULL
    cdef uint32_t three
    if not has_room(w, (length + 2) // 3 * 4):
        return
    if width > 1:
        turned = <uint8_t*>malloc(length if length else 1)
        if turned == NULL:
            w.out_of_memory = True
            return
        for i in range(length):
            if i < length - length % width:
                turned[i] = p[i // width * width + width - 1 - i % width]
            else:
                turned[i] = p[i]
        p = turned
    o = w.out + w.out_size
    i = 0
    while i + 3 <= length:
        three = (<uint32_t>p[i] << 16) | (<uint32_t>p[i + 1] << 8) | p[i + 2]
        o[0] = BASE64[three >> 18]
        o[1] = BASE64[(three >> 12) & 63]
        o[2] = BASE64[(three >> 6) & 63]
        o[3] = BASE64[three & 63]
        o += 4
        i += 3
    if i < length:
        three = <uint32_t>p[i] << 16
        if i + 1 < length:
            three |= <uint32_t>p[i + 1] << 8
        o[0] = BASE64[three >> 18]
        o[1] = BASE64[(three >> 12) & 63]
        o[2] = BASE64[(three >> 6) & 63] if i + 1 < length else c"="
        o[3] = c"="
        o += 4
    w.out_size = o - w.out
    free(turned)


cdef void note_member(Walk* w, uint32_t tag) noexcept nogil:
    """Remember where an attribute begins, in case they must be put in order."""
    cdef Member* grown
    cdef uint32_t room
    if w.member_count == w.member_room:
        room = w.member_room * 2
        grown = <Member*>realloc(w.members, room * sizeof(Member))
        if grown == NULL:
            w.out_of_memory = True
            return
        w.members, w.member_room = grown, room
    w.members[w.member_count] = Member(tag, w.member_count, w.out_size)
    w.member_count += 1


cdef void begin_member(Walk* w, uint32_t tag, uint16_t vr) noexcept nogil:
    """"TTTTTTTT":{"vr":"VR" """
    cdef Level* level = &w.levels[w.level]
    cdef uint8_t* o
    if not has_room(w, 32):
        return
    if level.has_members:
        w.out[w.out_size] = c","
        w.out_size += 1
    level.has_members = True
    note_member(w, tag)
    o = w.out + w.out_size
    memcpy(o, b'"00000000":{"vr":"XX"', 21)
    put_hex32(o + 1, tag)
    o[18] = vr >> 8
    o[19] = vr & 0xFF
    w.out_size += 21


cdef int compare_members(const void* a, const void* b) noexcept nogil:
    cdef const Member* one = <const Member*>a
    cdef const Member* other = <const Member*>b
    if one.tag != other.tag:
        return -1 if one.tag < other.tag else 1
    return -1 if one.order < other.order else 1


cdef void put_in_order(Walk* w, Level* level) noexcept nogil:
    """Sort the attributes of a data set by tag, the last of several alike alone: PS3.18 F.2.2 wants both."""
    cdef uint32_t count = w.member_count - level.members, i
    cdef Member* members = w.members + level.members
    cdef uint64_t begin = members[0].begin, end
    cdef uint64_t* ends
    cdef uint8_t* copy
    cdef uint8_t* o
    w.sorted_bytes += w.out_size - begin
    if w.sorted_bytes > w.out_max:
        w.too_long = True
        return
    copy = <uint8_t*>malloc(w.out_size - begin + 1)
    ends = <uint64_t*>malloc(count * sizeof(uint64_t))
    if copy == NULL or ends == NULL:
        free(copy)
        free(ends)
        w.out_of_memory = True
        return
    memcpy(copy, w.out + begin, w.out_size - begin)
    for i in range(count):
        members[i].order = i
        ends[i] = members[i + 1].begin - 1 if i + 1 < count else w.out_size
    qsort(members, count, sizeof(Member), compare_members)
    o = w.out + begin
    for i in range(count):
        if i + 1 < count and members[i + 1].tag == members[i].tag:
            continue
        if o != w.out + begin:
            o[0] = c","
            o += 1
        end = ends[members[i].order]
        memcpy(o, copy + (members[i].begin - begin), end - members[i].begin)
        o += end - members[i].begin
    w.out_size = o - w.out
    free(copy)
    free(ends)


# --- Text --------------------------------------------------------------------


cdef bint is_utf8(const uint8_t* p, uint64_t length) noexcept nogil:
    """Whether the bytes are UTF-8 as RFC 3629 section 4, Syntax of UTF-8 Byte Sequences, has it."""
    cdef uint64_t i = 0
    cdef uint8_t c
    while i < length:
        c = p[i]
        if c < 0x80:
            i += 1
        elif 0xC2 <= c <= 0xDF:
            if length - i < 2 or p[i + 1] & 0xC0 != 0x80:
                return False
            i += 2
        elif 0xE0 <= c <= 0xEF:
            if length - i < 3 or p[i + 1] & 0xC0 != 0x80 or p[i + 2] & 0xC0 != 0x80:
                return False
            if (c == 0xE0 and p[i + 1] < 0xA0) or (c == 0xED and p[i + 1] > 0x9F):
                return False
            i += 3
        elif 0xF0 <= c <= 0xF4:
            if length - i < 4 or p[i + 1] & 0xC0 != 0x80 or p[i + 2] & 0xC0 != 0x80 or p[i + 3] & 0xC0 != 0x80:
                return False
            if (c == 0xF0 and p[i + 1] < 0x90) or (c == 0xF4 and p[i + 1] > 0x8F):
                return False
            i += 4
        else:
            return False
    return True


cdef void decode_by_python(Walk* w, Level* level, uint16_t vr, const uint8_t* p, uint64_t length) noexcept with gil:
    """Put the UTF-8 of this text into w.text."""
    cdef bytes utf8
    cdef uint8_t* grown
    try:
        utf8 = decode_text(
            PyBytes_FromStringAndSize(<const char*>p, length),
            chr(vr >> 8) + chr(vr & 0xFF),
            PyBytes_FromStringAndSize(<const char*>level.charset, level.charset_length),
        ).encode("utf-8", "replace")
    except MemoryError:
        w.out_of_memory = True
        return
    w.text_size = PyBytes_GET_SIZE(utf8)
    if w.text_size > w.text_room:
        grown = <uint8_t*>realloc(w.text, w.text_size)
        if grown == NULL:
            w.out_of_memory = True
            w.text_size = 0
            return
        w.text, w.text_room = grown, w.text_size
    memcpy(w.text, PyBytes_AS_STRING(utf8), w.text_size)


cdef Charset ask_charset(const uint8_t* p, uint32_t length) noexcept with gil:
    try:
        return <Charset><int>_charset_kind(PyBytes_FromStringAndSize(<const char*>p, length))
    except MemoryError:
        return OTHER


cdef Charset charset_kind(Walk* w, const uint8_t* p, uint32_t length) noexcept nogil:
    """What a value of (0008,0005) is; Python is asked once for each, and not without end."""
    cdef uint32_t i
    cdef Asked* asked
    for i in range(w.asked_count):
        asked = &w.asked[i]
        if asked.length == length and memcmp(asked.value, p, length) == 0:
            return asked.kind
    if w.asked_count == CHARSETS_MAX:
        return LATIN_1
    w.asked[w.asked_count] = Asked(p, length, ask_charset(p, length))
    w.asked_count += 1
    return w.asked[w.asked_count - 1].kind


cdef void set_charset(Walk* w, Level* level, const uint8_t* p, uint32_t length) noexcept nogil:
    level.charset = p
    level.charset_length = length
    while length and (p[length - 1] == 0x20 or p[length - 1] == 0):
        length -= 1
    if length == 0 or (length == 10 and memcmp(p, b"ISO_IR 100", 10) == 0):
        level.kind = LATIN_1
    elif length == 10 and memcmp(p, b"ISO_IR 192", 10) == 0:
        level.kind = UTF_8
    else:
        level.kind = charset_kind(w, p, length)


cdef inline bint is_text_of_charset(uint16_t vr) noexcept nogil:
    """PS3.5 6.1.2.3, Encoding of Character Repertoires: only these VRs are affected by (0008,0005)."""
    return vr in (SH, LO, UC, ST, LT, UT, PN)


cdef struct Text:
    const uint8_t* p
    uint64_t length
    bint utf8


cdef Text decoded(Walk* w, Level* level, uint16_t vr, const uint8_t* p, uint64_t length) noexcept nogil:
    """The value as UTF-8 or Latin-1: where it lies if that is what it is, else out of Python."""
    cdef uint8_t above = 0
    cdef uint64_t i
    if not is_text_of_charset(vr):
        return Text(p, length, False)
    for i in range(length):
        above |= p[i] & 0x80
    if level.kind != OTHER and (length == 0 or memchr(p, 0x1B, length) == NULL):
        if not above or level.kind == LATIN_1:
            return Text(p, length, False)
        if level.kind == UTF_8 and is_utf8(p, length):
            return Text(p, length, True)
    decode_by_python(w, level, vr, p, length)
    if w.out_of_memory:
        return Text(p, 0, False)
    return Text(w.text, w.text_size, True)


cdef inline uint64_t without_padding(const uint8_t* p, uint64_t length) noexcept nogil:
    while length and (p[length - 1] == 0x20 or p[length - 1] == 0):
        length -= 1
    return length


cdef void put_string(Walk* w, const uint8_t* p, uint64_t length, bint utf8) noexcept nogil:
    """A string, or null for an empty one: PS3.18 F.2.5, DICOM JSON Model Null Values."""
    cdef uint8_t* o
    if not has_room(w, 6 * length + 8):
        return
    o = w.out + w.out_size
    if length == 0:
        memcpy(o, b"null", 4)
        w.out_size += 4
        return
    o[0] = c'"'
    o = put_escaped(o + 1, p, length, utf8)
    o[0] = c'"'
    w.out_size = o + 1 - w.out


cdef bint put_decimal(Walk* w, const uint8_t* p, uint64_t length, bint whole) noexcept nogil:
    """Write a DS or IS as a JSON number of the same value, digit for digit; False where it is no number.

    JSON has no "+1", "01", ".5" and "1."; a `whole` number loses a fraction of zeros. What may be too large
    for a double would be Infinity to a reader, so it is no number here.
    """
    cdef uint64_t i = 0, whole_at, whole_length, fraction_at, fraction_length = 0, exponent_at = 0
    cdef int64_t exponent = 0
    cdef bint negative = False, small = False
    cdef uint8_t* o
    if length == 0 or length > NUMBER_MAX:
        return False
    if p[0] == c"+" or p[0] == c"-":
        negative = p[0] == c"-"
        i = 1
    whole_at = i
    while i < length and 0x30 <= p[i] <= 0x39:
        i += 1
    whole_length = i - whole_at
    fraction_at = i
    if i < length and p[i] == c".":
        i += 1
        fraction_at = i
        while i < length and 0x30 <= p[i] <= 0x39:
            i += 1
        fraction_length = i - fraction_at
    if whole_length + fraction_length == 0:
        return False
    if i < length and (p[i] == c"e" or p[i] == c"E"):
        i += 1
        exponent_at = i
        if i < length and (p[i] == c"+" or p[i] == c"-"):
            small = p[i] == c"-"
            i += 1
        if i == length:
            return False
        while i < length and 0x30 <= p[i] <= 0x39:
            if exponent < 100000:
                exponent = exponent * 10 + (p[i] - 0x30)
            i += 1
    if i != length:
        return False
    while whole_length > 1 and p[whole_at] == c"0":
        whole_at += 1
        whole_length -= 1
    if (0 if small else exponent) + <int64_t>whole_length > 308:
        return False
    if whole and exponent_at == 0:
        while fraction_length and p[fraction_at + fraction_length - 1] == c"0":
            fraction_length -= 1
    if not has_room(w, length + 8):
        return True
    o = w.out + w.out_size
    if negative:
        o[0] = c"-"
        o += 1
    if whole_length == 0:
        o[0] = c"0"
        o += 1
    memcpy(o, p + whole_at, whole_length)
    o += whole_length
    if fraction_length:
        o[0] = c"."
        memcpy(o + 1, p + fraction_at, fraction_length)
        o += 1 + fraction_length
    if exponent_at:
        o[0] = c"e"
        memcpy(o + 1, p + exponent_at, length - exponent_at)
        o += 1 + length - exponent_at
    w.out_size = o - w.out
    return True


cdef void put_name(Walk* w, const uint8_t* p, uint64_t length, bint utf8) noexcept nogil:
    """A person's name by its groups, the empty ones left out: PS3.18 F.2.2. A fourth group has no name."""
    cdef uint64_t i = 0, begin = 0
    cdef int group = 0
    cdef bint any = False
    while length and p[length - 1] == c"=":
        length -= 1
    while i <= length and group < 3:
        if i == length or p[i] == c"=":
            if i > begin:
                put(w, b"{" if not any else b",", 1)
                any = True
                if group == 0:
                    put(w, b'"Alphabetic":', 13)
                elif group == 1:
                    put(w, b'"Ideographic":', 14)
                else:
                    put(w, b'"Phonetic":', 11)
                put_string(w, p + begin, i - begin, utf8)
            begin = i + 1
            group += 1
        i += 1
    put(w, b"}" if any else b"null", 1 if any else 4)


cdef void put_text(Walk* w, Level* level, uint16_t vr, const uint8_t* p, uint64_t length) noexcept nogil:
    ""","Value":[...] of a VR of text; nothing where there is nothing but padding.

    Padding goes as hilum.dicom.values has it: on both sides for AE, UI, IS and DS, at the end of each
    value for SH, LO and UC, at the end of the whole field for the others.
    """
    cdef Text text
    cdef uint64_t i, begin = 0, value, value_end
    cdef bint several = vr != ST and vr != LT and vr != UT and vr != UR
    cdef bint first = True
    if vr in (AS, CS, DA, DS, DT, IS, PN, TM, UI):
        length = without_padding(p, length)
    text = decoded(w, level, vr, p, length)
    p, length = text.p, text.length
    if vr == ST or vr == LT or vr == UT:
        length = without_padding(p, length)
    elif vr == UR:
        while length and is_space(p[length - 1]):
            length -= 1
    i = 0
    while i <= length:
        if i < length and not (several and p[i] == c"\\"):
            i += 1
            continue
        value, value_end = begin, i
        if vr == AE or vr == UI or vr == DS or vr == IS:
            while value < value_end and is_space(p[value]):
                value += 1
            while value < value_end and is_space(p[value_end - 1]):
                value_end -= 1
        elif vr == SH or vr == LO or vr == UC:
            value_end = value + without_padding(p + value, value_end - value)
        elif vr == PN:
            while value < value_end and p[value_end - 1] == c"=":
                value_end -= 1
        if first:
            if i == length and value == value_end:
                return
            put(w, b',"Value":[', 10)
            first = False
        else:
            put(w, b",", 1)
        if vr == PN:
            put_name(w, p + value, value_end - value, text.utf8)
        elif not ((vr == DS or vr == IS) and put_decimal(w, p + value, value_end - value, vr == IS)):
            put_string(w, p + value, value_end - value, text.utf8)
        begin = i + 1
        i += 1
    put(w, b"]", 1)


# --- Numbers and bytes -----------------------------------------------------------


cdef inline int word_width(uint16_t vr) noexcept nogil:
    """Bytes of one number of this VR; 0 for text and bytes."""
    if vr == US or vr == SS:
        return 2
    if vr == UL or vr == SL or vr == FL or vr == AT:
        return 4
    if vr == FD or vr == SV or vr == UV:
        return 8
    return 0


cdef inline int byte_width(uint16_t vr) noexcept nogil:
    """Bytes that change their order between big and little endian, PS3.5 7.3, Big Endian Versus Little Endian."""
    if vr == OW:
        return 2
    if vr == OF or vr == OL:
        return 4
    if vr == OD or vr == OV:
        return 8
    return 1


cdef void put_double_by_python(Walk* w, double value) noexcept with gil:
    cdef char* text
    cdef uint64_t length = 0
    try:
        text = PyOS_double_to_string(value, c"r", 0, 0, NULL)
    except MemoryError:
        w.out_of_memory = True
        return
    while text[length]:
        length += 1
    put(w, text, length)
    PyMem_Free(text)


cdef void put_double(Walk* w, double value) noexcept nogil:
    """A number that reads back as this one; JSON has none for NaN and the infinities, so these are strings."""
    cdef double size = -value if value < 0 else value
    cdef uint64_t digits, scale
    cdef int decimals
    cdef uint8_t* o
    if not isfinite(value):
        if isnan(value):
            put(w, b'"NaN"', 5)
        elif value > 0:
            put(w, b'"Infinity"', 10)
        else:
            put(w, b'"-Infinity"', 11)
        return
    if not has_room(w, 40):
        return
    # A quotient of whole numbers below 2^53 and a power of ten is what the same decimal reads as.
    if size < 4e6:
        for decimals in range(10):
            digits = <uint64_t>floor(size * POWERS[decimals] + 0.5)
            if <double>digits / POWERS[decimals] == size:
                o = w.out + w.out_size
                if value < 0:
                    o[0] = c"-"
                    o += 1
                scale = <uint64_t>POWERS[decimals]
                o = put_unsigned(o, digits // scale)
                if decimals:
                    o[0] = c"."
                    digits = digits % scale
                    put_unsigned(o + 1, scale + digits)     # a leading 1 keeps the zeros
                    memmove(o + 1, o + 2, decimals)
                    o += 1 + decimals
                w.out_size = o - w.out
                return
    put_double_by_python(w, value)


cdef void put_numbers(Walk* w, uint32_t tag, uint16_t vr, const uint8_t* p, uint64_t length) noexcept nogil:
    ""","Value":[...] of a binary VR; the length is a multiple of its width."""
    cdef int width = word_width(vr)
    cdef uint64_t i
    cdef uint8_t* o
    cdef uint32_t bits
    cdef uint64_t long_bits
    cdef float single
    cdef double double_
    cdef bint big = w.big
    cdef bint descriptor = tag == 0x00283002 or 0x00281101 <= tag <= 0x00281103
    if length == 0:
        return
    put(w, b',"Value":[', 10)
    for i in range(length // width):
        if not has_room(w, 32):
            return
        o = w.out + w.out_size
        if i:
            o[0] = c","
            o += 1
        w.out_size = o - w.out
        if vr == US:
            o = put_unsigned(o, u16(p, big))
        elif vr == SS:
            if descriptor and i == 0:       # PS3.3 C.11.1.1, LUT Descriptor: the first value is unsigned
                o = put_unsigned(o, u16(p, big))
            else:
                o = put_signed(o, <int16_t>u16(p, big))
        elif vr == UL:
            o = put_unsigned(o, u32(p, big))
        elif vr == SL:
            o = put_signed(o, <int32_t>u32(p, big))
        elif vr == UV:
            o = put_unsigned(o, u64(p, big))
        elif vr == SV:
            o = put_signed(o, <int64_t>u64(p, big))
        elif vr == AT:
            o[0] = c'"'
            put_hex32(o + 1, tag_at(p, big))
            o[9] = c'"'
            o += 10
        elif vr == FL:
            bits = u32(p, big)
            memcpy(&single, &bits, 4)
            put_double(w, <double>single)
            o = w.out + w.out_size
        else:
            long_bits = u64(p, big)
            memcpy(&double_, &long_bits, 8)
            put_double(w, double_)
            o = w.out + w.out_size
        w.out_size = o - w.out
        p += width
    put(w, b"]", 1)


cdef void put_uri(Walk* w, uint32_t tag) noexcept nogil:
    ""","BulkDataURI":"<prefix>52009229.1.00289110.1.00420011": tags, and item numbers from 1."""
    cdef uint8_t* o
    cdef uint32_t i
    put(w, b',"BulkDataURI":"', 16)
    put(w, <const char*>w.prefix, w.prefix_length)
    if not has_room(w, <uint64_t>w.depth * 21 + 16):
        return
    o = w.out + w.out_size
    for i in range(w.depth):
        if w.open[i].tag != ITEM:
            put_hex32(o, w.open[i].tag)
            o[8] = c"."
            o = put_unsigned(o + 9, w.open[i].item)
            o[0] = c"."
            o += 1
    put_hex32(o, tag)
    o[8] = c'"'
    w.out_size = o + 9 - w.out


cdef void put_bytes(Walk* w, uint32_t tag, uint16_t vr, const uint8_t* p, uint64_t length) noexcept nogil:
    ""","InlineBinary":"..." of few bytes, ,"BulkDataURI":"..." of more: PS3.18 F.2.6, F.2.7."""
    if length == 0:
        return
    if length > w.inline_max:
        put_uri(w, tag)
        return
    put(w, b',"InlineBinary":"', 17)
    put_base64(w, p, length, byte_width(vr) if w.big else 1)
    put(w, b'"', 1)


# --- What is wanted -----------------------------------------------------------------


cdef bint is_of_creator(Walk* w, Level* level, uint32_t tag, const Node* node) noexcept nogil:
    cdef uint32_t i = w.creator_count
    while i > level.creators:
        i -= 1
        if w.creators[i].tag == (tag >> 16 << 16) | ((tag >> 8) & 0xFF):
            return (w.creators[i].length == node.creator_length
                    and memcmp(w.creators[i].value, node.creator, node.creator_length) == 0)
    return False


cdef bint reserves_wanted(const Node* node, uint32_t tag, const uint8_t* value, uint64_t length) noexcept nogil:
    """Whether a Private Creator is one that this step names: it leaves with what it reserves."""
    return (node.creator != NULL and (node.tag >> 16) == (tag >> 16) and length == node.creator_length
            and memcmp(value, node.creator, length) == 0)


cdef int32_t node_of(Walk* w, Level* level, uint32_t tag) noexcept nogil:
    """What is wanted of an element: ALL of it, NONE, or the steps below it."""
    cdef int32_t at
    cdef const Node* node
    if level.node < 0:
        return level.node
    at = level.node
    while at >= 0:
        node = &w.nodes[at]
        if tag & node.mask == node.tag & node.mask and (
            node.creator == NULL or ((tag & 0xFFFF) >= 0x1000 and is_of_creator(w, level, tag, node))
        ):
            return node.child
        at = node.sibling
    return NONE


cdef void note_creator(Walk* w, uint32_t tag, const uint8_t* value, uint64_t length) noexcept nogil:
    cdef Creator* grown
    cdef uint32_t room
    if w.creator_count == w.creator_room:
        room = w.creator_room * 2 if w.creator_room else 16
        grown = <Creator*>realloc(w.creators, room * sizeof(Creator))
        if grown == NULL:
            w.out_of_memory = True
            return
        w.creators, w.creator_room = grown, room
    w.creators[w.creator_count] = Creator(tag, value, <uint32_t>length)
    w.creator_count += 1


# --- The walk -------------------------------------------------------------------------


cdef inline bint is_there(Walk* w, uint64_t at, uint64_t length) noexcept nogil:
    """Whether these bytes of the file lie together in the head."""
    return at >= w.gone and at - w.gone <= w.size and w.size - (at - w.gone) >= length


cdef inline const uint8_t* pointer_to(Walk* w, uint64_t at) noexcept nogil:
    return w.data + (at - w.gone)


cdef inline uint64_t limit_of(Walk* w) noexcept nogil:
    return w.open[w.depth - 1].limit if w.depth else w.total


cdef bint jump(Walk* w, uint64_t to) noexcept nogil:
    """Go on at `to`, past the holes that lie before it. False where one reaches over it."""
    while w.next_hole < w.hole_count and w.holes[w.next_hole].offset < to:
        if w.holes[w.next_hole].length > to - w.holes[w.next_hole].offset:
            return False
        w.gone += w.holes[w.next_hole].length
        w.next_hole += 1
    w.at = to
    return True


cdef inline uint64_t hole_at(Walk* w, uint64_t at) noexcept nogil:
    """Length of the hole that begins here; 0 for none."""
    if w.next_hole < w.hole_count and w.holes[w.next_hole].offset == at:
        return w.holes[w.next_hole].length
    return 0


cdef Status push(Walk* w, uint32_t tag, uint64_t end, int32_t node) noexcept nogil:
    cdef Open* opened
    if w.depth == DEPTH_MAX:
        return NESTED_TOO_DEEP
    opened = &w.open[w.depth]
    opened.end = end
    opened.limit = limit_of(w) if end == NEVER else end
    opened.value_at = w.at
    opened.out_size = w.out_size
    opened.tag = tag
    opened.item = 0
    opened.next_hole = w.next_hole
    opened.members = w.member_count
    opened.creators = w.creator_count
    opened.node = node
    opened.had_members = w.levels[w.level].has_members
    opened.implicit, opened.big = w.implicit, w.big
    w.depth += 1
    return GO_ON


cdef void begin_item(Walk* w) noexcept nogil:
    """A new data set below the sequence on top of the stack; its item is about to be pushed."""
    cdef Open* sequence = &w.open[w.depth - 1]
    cdef Level* level
    cdef const Level* outer = &w.levels[w.level]
    cdef int32_t node = sequence.node
    sequence.item += 1
    if w.searching and (node == ALL or node >= 0 and w.items[(w.depth - 1) // 2] != sequence.item):
        node = NONE         # ALL: it is the sequence itself that was asked for, not what is in it
    if sequence.node != NONE and not w.searching:
        if sequence.item == 1:
            put(w, b',"Value":[{', 11)
        else:
            put(w, b",{", 2)
    w.level += 1
    level = &w.levels[w.level]
    level.last_tag = 0
    level.members = w.member_count
    level.creators = w.creator_count
    level.disordered = level.has_members = False
    level.charset, level.charset_length, level.kind = outer.charset, outer.charset_length, outer.kind
    level.signed_pixels = outer.signed_pixels
    level.lut_length = -1
    level.node = node


cdef void end_data_set(Walk* w) noexcept nogil:
    cdef Level* level = &w.levels[w.level]
    if level.disordered and w.member_count > level.members and not w.out_of_memory:
        put_in_order(w, level)
    w.member_count = level.members
    w.creator_count = level.creators


cdef void pop(Walk* w) noexcept nogil:
    cdef Open* opened = &w.open[w.depth - 1]
    if opened.tag == ITEM:
        end_data_set(w)
        if opened.node != NONE and not w.searching:
            put(w, b"}", 1)
        w.level -= 1
    elif opened.node != NONE and not w.searching:
        if opened.item:
            put(w, b"]}", 2)
        else:
            put(w, b"}", 1)
    w.depth -= 1
    w.implicit, w.big = opened.implicit, opened.big


cdef void capture(Walk* w, uint64_t offset, uint64_t length, uint16_t vr, bint hole, bint encapsulated) noexcept nogil:
    cdef Level* level = &w.levels[w.level]
    w.found = Found(True, hole, encapsulated, w.big, vr, offset, length, level.charset, level.charset_length)


cdef bint step_over(Walk* w) noexcept nogil:
    """After broken content: write the innermost sequence of known length as bytes, and go on behind it.

    False where there is none, or where it has holes: those are taken only of what could be walked.
    """
    cdef uint32_t depth = w.depth
    cdef Open* sequence
    while depth and (w.open[depth - 1].tag == ITEM or w.open[depth - 1].end == NEVER):
        depth -= 1
    if depth == 0:
        return False
    sequence = &w.open[depth - 1]
    if sequence.next_hole != w.next_hole or not is_there(w, sequence.value_at, sequence.end - sequence.value_at):
        return False
    while w.depth > depth:
        w.depth -= 1
        if w.open[w.depth].tag == ITEM:
            w.level -= 1
    w.depth -= 1
    w.out_size = sequence.out_size
    w.member_count, w.creator_count = sequence.members, sequence.creators
    w.levels[w.level].has_members = sequence.had_members
    w.implicit, w.big = sequence.implicit, sequence.big
    if sequence.node != NONE:
        if w.searching:
            if sequence.node == ALL:
                capture(w, sequence.value_at, sequence.end - sequence.value_at, UN, False, False)
        else:
            begin_member(w, sequence.tag, UN)
            put_bytes(w, sequence.tag, UN, pointer_to(w, sequence.value_at), sequence.end - sequence.value_at)
            put(w, b"}", 1)
    return jump(w, sequence.end)


cdef Status walk_fragments(Walk* w, uint32_t tag, uint64_t value_at, uint64_t* length, bint* hole) noexcept nogil:
    """Find the end of an encapsulated value at w.at, PS3.5 A.4, Transfer Syntaxes For Encapsulation of Encoded
    Pixel Data, and go on behind its delimiter. Broken items end the value with the file, as in _fastparse."""
    cdef uint64_t limit = limit_of(w), taken
    cdef uint32_t item_tag, item_length
    cdef const uint8_t* p
    cdef bint top = w.depth == 0
    hole[0] = False
    taken = hole_at(w, w.at)
    if taken:
        if taken > limit - w.at or not jump(w, w.at + taken):
            return BAD_HOLE
        hole[0] = True
        length[0] = taken
        if w.at == w.total and top:
            return DONE
    while limit - w.at >= 8:
        if not is_there(w, w.at, 8):
            return TRUNCATED
        p = pointer_to(w, w.at)
        item_tag, item_length = tag_at(p, w.big), u32(p + 4, w.big)
        if item_tag == SEQUENCE_END:
            length[0] = w.at - value_at
            return GO_ON if jump(w, w.at + 8) else BAD_HOLE
        if hole[0] or item_tag != ITEM or item_length > limit - w.at - 8:
            break
        if not is_there(w, w.at + 8, item_length):
            return TRUNCATED
        w.at += 8 + <uint64_t>item_length
    if not top or not is_pixel_tag(tag):
        return TRUNCATED
    length[0] = w.total - value_at
    w.at = w.total
    return DONE


cdef uint16_t settle_vr(Walk* w, Level* level, uint32_t tag, uint16_t vr, bint undefined) noexcept nogil:
    """The VR to write: that of the dictionary where the data set has none or UN, and what that leaves open
    settled as PS3.5 A.1, DICOM Implicit VR Little Endian Transfer Syntax, and its neighbours have it."""
    cdef uint16_t known
    if vr != 0 and vr != UN:
        return vr if is_short_vr(vr) or is_long_vr(vr) else <uint16_t>UN
    known = dictionary_vr(tag)
    if known > US_OR_SS_OR_OW:
        return <uint16_t>UN if known == SQ else known     # a sequence that is none: its bytes are kept
    if is_pixel_tag(tag) and undefined:
        return OB
    if known == US_OR_SS:
        if level.signed_pixels < 0:
            level.signed_pixels = find_signed_pixels(w)
        return SS if level.signed_pixels == 1 else US
    if known == US_OR_OW:
        return US if level.lut_length == 1 else OW
    return OW


cdef int find_signed_pixels(Walk* w) noexcept nogil:
    """Pixel Representation (0028,0103) of the data set, for an element that stands before it. 0 where absent."""
    cdef Walk* probe
    cdef int signed_pixels = w.levels[0].signed_pixels
    if w.stop_after == 0x00280103 or signed_pixels >= 0:    # it is a probe itself, or has gone by
        return signed_pixels if signed_pixels >= 0 else 0
    probe = <Walk*>malloc(sizeof(Walk))
    if probe == NULL:
        w.out_of_memory = True
        return 0
    begin_walk(probe, w.data, w.size, w.total, w.holes, w.hole_count)
    probe.next_hole = probe.gone = 0
    probe.at = w.open[0].value_at if w.depth else w.at
    # What lies before has been walked, and holes with it.
    while probe.next_hole < w.hole_count and w.holes[probe.next_hole].offset < probe.at:
        probe.gone += w.holes[probe.next_hole].length
        probe.next_hole += 1
    if w.depth:
        probe.implicit, probe.big = w.open[0].implicit, w.open[0].big
        probe.at = w.open[0].value_at
        if w.open[0].end == NEVER:
            push(probe, w.open[0].tag, NEVER, NONE)
        else:
            jump(probe, w.open[0].end)
    else:
        probe.implicit, probe.big = w.implicit, w.big
    probe.levels[0].node = NONE
    probe.stop_after = 0x00280103
    walk(probe)
    signed_pixels = probe.levels[0].signed_pixels
    end_walk(probe)
    w.levels[0].signed_pixels = signed_pixels if signed_pixels > 0 else 0
    return w.levels[0].signed_pixels


cdef void begin_walk(
    Walk* w, const uint8_t* data, uint64_t size, uint64_t total, const Hole* holes, uint32_t hole_count
) noexcept nogil:
    w.data, w.size, w.total = data, size, total
    w.holes, w.hole_count = holes, hole_count
    w.next_hole = w.tag = 0
    w.gone = w.at = 0
    w.implicit = w.big = False
    w.depth = w.level = 0
    w.levels[0] = Level(0, 0, 0, False, False, NULL, 0, LATIN_1, -1, -1, ALL)
    w.nodes, w.items = NULL, NULL
    w.stop_after = 0xFFFFFFFF
    w.searching = w.charset_wanted = w.out_of_memory = w.too_long = False
    w.found.there = False
    w.out, w.members, w.creators, w.text = NULL, NULL, NULL, NULL
    w.out_size = w.out_room = w.text_room = w.text_size = w.sorted_bytes = 0
    w.asked_count = 0
    w.member_count = w.member_room = w.creator_count = w.creator_room = 0
    w.out_max = 0
    w.prefix, w.prefix_length, w.inline_max = NULL, 0, 0


cdef void end_walk(Walk* w) noexcept nogil:
    free(w.out)
    free(w.members)
    free(w.creators)
    free(w.text)
    free(w)


cdef void put_charset(Walk* w) noexcept nogil:
    begin_member(w, 0x00080005, CS)
    put(w, b',"Value":["ISO_IR 192"]}', 24)
    if w.level == 0:
        w.charset_wanted = False


cdef void put_element(
    Walk* w, uint32_t tag, uint16_t vr, uint64_t value_at, uint64_t length, bint hole, bint encapsulated
) noexcept nogil:
    """One attribute that is no sequence. `vr` is settled."""
    cdef Level* level = &w.levels[w.level]
    cdef const uint8_t* p = NULL
    cdef int width = word_width(vr)
    if not hole:
        if not is_there(w, value_at, length):
            return          # unreachable for a head that _fastparse has accepted
        p = pointer_to(w, value_at)
    if w.searching:
        capture(w, value_at, length, vr, hole, encapsulated)
        return
    if tag == 0x00080005:
        if w.level or w.charset_wanted:
            put_charset(w)
        return
    if width and length % width:
        vr = UN             # a number cut in two is none; its bytes are kept
    begin_member(w, tag, vr)
    if hole or is_pixel_tag(tag):
        if length:
            put_uri(w, tag)
    elif encapsulated:
        put_bytes(w, tag, OB, p, length)        # its items, which are little endian or big as they came
    elif vr in (OB, OW, UN, OF, OL, OD, OV):
        put_bytes(w, tag, vr, p, length)
    elif width:
        put_numbers(w, tag, vr, p, length)
    else:
        put_text(w, level, vr, p, length)
    put(w, b"}", 1)


cdef void look_at(
    Walk* w, Level* level, uint32_t tag, uint64_t value_at, uint64_t length, int32_t wanted
) noexcept nogil:
    """Keep what other elements of the data set depend on; the value lies in the head."""
    cdef const uint8_t* p = pointer_to(w, value_at)
    cdef const Node* node
    cdef int32_t at
    if tag == 0x00080005:
        set_charset(w, level, p, <uint32_t>length)
    elif tag == 0x00280103 and length >= 2:
        level.signed_pixels = u16(p, w.big) & 1
    elif tag == 0x00283002 and length >= 2:
        level.lut_length = u16(p, w.big)
    elif level.node >= 0 and (tag >> 16) & 1 and 0x10 <= (tag & 0xFFFF) <= 0xFF:
        length = without_padding(p, length)
        at = level.node
        while at >= 0:
            node = &w.nodes[at]
            if reserves_wanted(node, tag, p, length):
                note_creator(w, tag, p, length)
                if not w.searching and wanted == NONE:
                    put_element(w, tag, LO, value_at, length, False, False)
                return
            at = node.sibling


cdef Status fail(Walk* w, Status status) noexcept nogil:
    """Go on behind a sequence that can be stepped over, else end with this status."""
    return GO_ON if step_over(w) else status


cdef Status walk(Walk* w) noexcept nogil:
    cdef Status status = GO_ON
    while status == GO_ON:
        status = step(w)
        if w.out_of_memory:
            return OUT_OF_MEMORY
        if w.too_long:
            return TOO_LONG
    if status == DONE:
        if w.charset_wanted and not w.searching:
            put_charset(w)
        end_data_set(w)
    return status


cdef Status step(Walk* w) noexcept nogil:
    """One element, item or delimiter."""
    cdef const uint8_t* p
    cdef Level* level
    cdef uint32_t tag, length, header
    cdef uint16_t vr, settled
    cdef uint64_t remaining, limit, value_at, value_length, taken
    cdef int32_t node
    cdef Status status
    cdef bint top, is_sequence, hole

    while w.depth and w.at == w.open[w.depth - 1].limit:
        if w.open[w.depth - 1].end != NEVER:
            pop(w)
        else:       # undefined length, and no delimiter before the end of what is around it
            return fail(w, TRUNCATED if w.at == w.total else OVERRUN)
    limit = limit_of(w)
    if w.at > limit:
        return fail(w, OVERRUN)
    remaining = limit - w.at
    top = w.depth == 0
    if remaining < 8:
        return DONE if top else fail(w, TRUNCATED if limit == w.total else OVERRUN)
    if not is_there(w, w.at, 8):
        return fail(w, TRUNCATED)
    p = pointer_to(w, w.at)
    tag = tag_at(p, w.big)
    w.tag = tag
    level = &w.levels[w.level]

    if (tag >> 16) == 0xFFFE:
        length = u32(p + 4, w.big)
        if not top and w.open[w.depth - 1].tag != ITEM:         # between two items of a sequence
            if tag == ITEM:
                if length != UNDEFINED and length > remaining - 8:
                    return fail(w, OVERRUN)
                w.at += 8
                if w.depth == DEPTH_MAX:
                    return fail(w, NESTED_TOO_DEEP)
                begin_item(w)
                node = w.open[w.depth - 1].node
                push(w, ITEM, NEVER if length == UNDEFINED else w.at + length, node)
                if not w.implicit and length != 0 and limit - w.at >= 8:
                    # An item of an explicit VR data set may still be implicit, see _fastparse.
                    if not is_there(w, w.at, 8):
                        return fail(w, TRUNCATED)
                    p = pointer_to(w, w.at)
                    if tag_at(p, w.big) != ITEM_END:
                        w.implicit = not (is_capital(p[4]) and is_capital(p[5]))
                return GO_ON
            if tag == SEQUENCE_END and w.open[w.depth - 1].end == NEVER:
                w.at += 8
                pop(w)
                return GO_ON
        elif tag == ITEM_END and not top and w.open[w.depth - 1].end == NEVER:
            w.at += 8
            pop(w)
            return GO_ON
        elif top and tag == SEQUENCE_END and length == 0:
            w.at += 8           # left over by writers that end a sequence of known length twice
            return GO_ON
        return fail(w, UNBALANCED)
    if not top and w.open[w.depth - 1].tag != ITEM:
        if w.big and tag_at(p, False) == ITEM:
            w.big = False       # UN is little endian in any transfer syntax, PS3.5 6.2.2 Note 2
            return GO_ON
        return fail(w, UNBALANCED)

    if top and tag > w.stop_after:
        return DONE
    if w.implicit:
        header, length, vr = 8, u32(p + 4, w.big), 0
    else:
        vr = u16(p + 4, True)
        if is_short_vr(vr):
            header, length = 8, u16(p + 6, w.big)
        elif is_long_vr(vr) or (is_capital(p[4]) and is_capital(p[5]) and p[6] == 0 and p[7] == 0):
            if remaining < 12 or not is_there(w, w.at, 12):
                return fail(w, TRUNCATED)
            header, length = 12, u32(p + 8, w.big)
        elif 0x4141 <= vr <= 0x5A5A:                        # "AA" to "ZZ", pydicom's bounds
            header, length = 8, u16(p + 6, w.big)
        else:
            header, length, vr = 8, u32(p + 4, w.big), 0    # a writer that left explicit VR for an element
    if remaining < header:
        return fail(w, TRUNCATED)
    value_at = w.at + header

    node = node_of(w, level, tag)
    if (tag & 0xFFFF) == 0 or (top and (tag >> 16) <= 2):
        node = NONE         # PS3.18 F.2.2: no group lengths; and this is no File Meta Information
    if level.node != NONE:
        if w.charset_wanted and top and tag > 0x00080005 and not w.searching:
            put_charset(w)
        if tag <= level.last_tag:
            level.disordered = True
        level.last_tag = tag

    hole = False
    if length == UNDEFINED:
        if vr == SQ:
            is_sequence = True
        elif is_pixel_tag(tag):
            is_sequence = False
        elif vr == UN:
            is_sequence = True
        elif vr and vr != UT and vr != UC and vr != UR:
            is_sequence = False
        elif dictionary_vr(tag) == SQ:
            is_sequence = True
        else:
            if remaining < header + 4 or not is_there(w, value_at, 4):
                return fail(w, TRUNCATED)
            is_sequence = tag_at(p + header, w.big) == ITEM
            if not is_sequence:
                return put_until_delimiter(w, level, tag, vr, value_at, node)
        if is_sequence:
            return begin_sequence(w, tag, value_at, NEVER, node)
        w.at = value_at
        status = walk_fragments(w, tag, value_at, &value_length, &hole)
        if status > DONE:
            return fail(w, status)
        if node == ALL:
            put_element(w, tag, settle_vr(w, level, tag, vr, True), value_at, value_length, hole, True)
        return status

    if length > remaining - header:
        if top and is_pixel_tag(tag):
            # Pixel Data promises more than there is: what is there ends with the file.
            value_length = w.total - value_at
            taken = hole_at(w, value_at)
            hole = taken != 0 and taken == value_length
            if node == ALL and (hole or is_there(w, value_at, value_length)):
                put_element(w, tag, settle_vr(w, level, tag, vr, False), value_at, value_length, hole, False)
            w.at = w.total
            return DONE
        return fail(w, TRUNCATED if top or limit == w.total else OVERRUN)

    taken = hole_at(w, value_at)
    if taken:
        if taken != length:
            return fail(w, BAD_HOLE)
        if node == ALL:
            put_element(w, tag, settle_vr(w, level, tag, vr, False), value_at, length, True, False)
        w.at = value_at
        if not jump(w, value_at + length):
            return BAD_HOLE
        return GO_ON
    if vr == SQ or ((vr == 0 or vr == UN) and dictionary_vr(tag) == SQ):
        if node == NONE:
            return GO_ON if jump(w, value_at + length) else fail(w, BAD_HOLE)
        status = begin_sequence(w, tag, value_at, value_at + length, node)
        if vr == UN:
            w.implicit = True
        return status
    if not is_there(w, value_at, length) or (
        w.next_hole < w.hole_count and w.holes[w.next_hole].offset < value_at + length
    ):
        return fail(w, BAD_HOLE)
    look_at(w, level, tag, value_at, length, node)
    if node == ALL:
        put_element(w, tag, settle_vr(w, level, tag, vr, False), value_at, length, False, False)
    w.at = value_at + length
    return GO_ON


cdef Status begin_sequence(Walk* w, uint32_t tag, uint64_t value_at, uint64_t end, int32_t node) noexcept nogil:
    cdef Status status
    w.at = value_at
    status = push(w, tag, end, node)
    if status != GO_ON:
        return fail(w, status)
    if node != NONE and not w.searching:
        begin_member(w, tag, SQ)
    return GO_ON


cdef Status put_until_delimiter(
    Walk* w, Level* level, uint32_t tag, uint16_t vr, uint64_t value_at, int32_t node
) noexcept nogil:
    """A value of undefined length that is neither a sequence nor fragments: all up to the next delimiter.

    PS3.5 7.1.1 does not allow it. Writers do it, pydicom reads it so, and such files are stored whole.
    """
    cdef const uint8_t* p
    cdef uint64_t limit = limit_of(w), length = 0
    while limit - value_at - length >= 8 and is_there(w, value_at + length, 8):
        p = pointer_to(w, value_at + length)
        if tag_at(p, w.big) == SEQUENCE_END and u32(p + 4, w.big) == 0:
            look_at(w, level, tag, value_at, length, node)
            if node == ALL:
                put_element(w, tag, settle_vr(w, level, tag, vr, True), value_at, length, False, False)
            w.at = value_at + length + 8
            return GO_ON
        length += 1
    return fail(w, TRUNCATED)


# --- Python boundary ---------------------------------------------------------


REASON_OF = {
    TRUNCATED: "an element runs past the end of the file",
    NESTED_TOO_DEEP: "sequences are nested too deep",
    UNBALANCED: "a delimiter or element stands where it can't",
    OVERRUN: "a value runs past the end of the item that holds it",
    BAD_HOLE: "a hole is not where a value is",
    TOO_LONG: "the document would be too long",
}

INLINE_BYTES_MAX = 1024

cdef enum:
    NOGIL_MIN = 262144      # bytes of a head that is worth giving the GIL up for: a millisecond's work
    OUT_BASE = 16777216     # and a document may be so many bytes longer than eight times its head


_CHOICES = {b"US/SS": US_OR_SS, b"OB/OW": OB_OR_OW, b"US/OW": US_OR_OW, b"US/SS/OW": US_OR_SS_OR_OW}


cdef uint16_t _vr_code(bytes vr):
    return _CHOICES[vr] if len(vr) > 2 else vr[0] << 8 | vr[1]


cdef int _load_dictionary() except -1:
    """Fill the tables on first use, out of the rows "TTTTTTTT VR VM Keyword" of hilum.dicom._tables."""
    global repeating_count
    cdef uint32_t slot, tag
    from hilum.dicom import _tables

    if repeating_count:
        return 0
    for row in _tables.ELEMENTS.encode("ascii").split(b"\n"):
        digits, vr, _ = row.split(b" ", 2)
        tag = int(digits, 16)
        slot = slot_of(tag)
        while DICTIONARY[slot].vr:
            slot = (slot + 1) & (DICTIONARY_SIZE - 1)
        DICTIONARY[slot] = Entry(tag, _vr_code(vr))
    rows = _tables.REPEATING.encode("ascii").split(b"\n")
    assert len(rows) <= REPEATING_MAX
    for row in rows:
        digits, vr, _ = row.split(b" ", 2)
        mask = int(bytes(0x30 if digit == 0x78 else 0x46 for digit in digits), 16)
        REPEATING[repeating_count] = Repeating(mask, int(digits.replace(b"x", b"0"), 16), _vr_code(vr))
        repeating_count += 1
    return 0


for _code in range(256):
    PLAIN[_code] = 0x20 <= _code < 0x80 and _code != 0x22 and _code != 0x5C


_ASCII = bytes(code for code in range(128) if code != 0x1B)
_ABOVE = bytes(range(128, 256))
_SOME_UTF8 = "\xe9\u20ac\u5c71\U0001f600"


@lru_cache(maxsize=256)
def _charset_kind(value: bytes) -> int:
    """What hilum.dicom.charset does under this value of (0008,0005), found out by asking it."""
    if decode_text(_ASCII, "LO", value) != _ASCII.decode("ascii"):
        return OTHER
    if decode_text(_ABOVE, "LO", value) == _ABOVE.decode("latin-1"):
        return LATIN_1
    if decode_text(_SOME_UTF8.encode(), "LO", value) == _SOME_UTF8:
        return UTF_8 if decode_text(b"\xa4\xa4", "LO", value) == "\ufffd\ufffd" else ASCII_ELSE
    return ASCII_ELSE


cdef class Paths:
    """What is wanted of data sets: paths of tags, made once and used for many heads.

    A path is a sequence of steps from the top of the data set down; the element at its end is wanted as a
    whole. A step is a tag, or for a private element (tag, creator), of whose tag the block, the two digits
    in front of the last two, does not count: it is found by its Private Creator, which is then wanted too.
    """

    cdef Node* nodes
    cdef int32_t first
    cdef uint32_t stop_after
    cdef bint charset
    cdef list keep      # bytes that nodes point to

    def __cinit__(self, paths):
        self.nodes = NULL
        self.keep = []
        tree = {}
        for path in paths:
            level = tree
            *above, last = path
            for step in above:
                level = level.setdefault(step, {})
                if level is None:
                    break       # all of what is above it is wanted already
            if level is not None:
                level[last] = None
        count = _count_nodes(tree)
        self.nodes = <Node*>malloc((count + 1) * sizeof(Node))
        if self.nodes == NULL:
            raise MemoryError
        self.stop_after = 0
        for step in tree:
            tag = step if isinstance(step, int) else step[0] | 0xFF00
            self.stop_after = max(self.stop_after, tag)
        self.charset = 0x00080005 in tree
        used = [0]
        self.first = self._add(tree, used)

    cdef int32_t _add(self, dict tree, list used):
        cdef int32_t first = NONE, last = NONE, at
        for step, below in tree.items():
            at = used[0]
            used[0] = at + 1
            self.nodes[at].creator, self.nodes[at].creator_length = NULL, 0
            self.nodes[at].sibling = NONE
            if isinstance(step, int):
                self.nodes[at].tag, self.nodes[at].mask = step, 0xFFFFFFFF
            else:
                tag, creator = step
                data = creator.encode("utf-8").rstrip(b"\0 ")
                self.keep.append(data)
                self.nodes[at].tag, self.nodes[at].mask = tag, 0xFFFF00FF
                self.nodes[at].creator = <const uint8_t*>PyBytes_AS_STRING(data)
                self.nodes[at].creator_length = PyBytes_GET_SIZE(data)
            self.nodes[at].child = ALL
            if last >= 0:
                self.nodes[last].sibling = at
            else:
                first = at
            last = at
        at = first
        for below in tree.values():
            if below is not None:
                self.nodes[at].child = self._add(below, used)
            at = self.nodes[at].sibling
        return first

    def __dealloc__(self):
        free(self.nodes)


def _count_nodes(tree):
    return sum(1 + (_count_nodes(below) if below is not None else 0) for below in tree.values())


cdef Hole* _holes_of(holes, uint64_t size, uint64_t* total) except NULL:
    """The holes as C, and the length of the file with them."""
    cdef Py_ssize_t i, count = len(holes)
    cdef Hole* found = <Hole*>malloc((count + 1) * sizeof(Hole))
    cdef uint64_t offset, length, end = 0
    if found == NULL:
        raise MemoryError
    total[0] = size
    try:
        for i in range(count):
            offset, length = holes[i][0], holes[i][1]
            if offset < end or length == 0 or length > NEVER - offset or length > (NEVER >> 1) - total[0]:
                raise BadDicom(REASON_OF[BAD_HOLE], offset=offset)
            found[i] = Hole(offset, length)
            total[0] += length
            end = offset + length
    except BaseException:
        free(found)
        raise
    return found


cdef Walk* _start(const uint8_t[::1] head, Hole* holes, uint32_t hole_count, uint64_t total, uint64_t data_set_at,
                  bint implicit, bint big) except NULL:
    cdef Walk* w
    if repeating_count == 0:
        _load_dictionary()
    w = <Walk*>malloc(sizeof(Walk))
    if w == NULL:
        raise MemoryError
    begin_walk(w, &head[0] if head.shape[0] else NULL, head.shape[0], total, holes, hole_count)
    w.implicit, w.big = implicit, big
    w.at = 0
    if not jump(w, data_set_at) or w.at > w.total:
        w.at = w.total      # then there is no data set
    return w


cdef _raise(Walk* w, Status status):
    if status == OUT_OF_MEMORY:
        raise MemoryError
    raise BadDicom(REASON_OF[status], offset=w.at, tag=w.tag)


def write(const uint8_t[::1] head not None, holes, uint64_t data_set_at, bint implicit, bint big, *,
          bytes uri_prefix not None=b"", Paths wanted=None, uint64_t inline_max=INLINE_BYTES_MAX):
    """Return the data set of a head as a DICOM JSON Model object; see _dicomjson.pyi."""
    cdef uint64_t total
    cdef Hole* taken = _holes_of(holes, head.shape[0], &total)
    cdef Walk* w
    cdef Status status
    try:
        w = _start(head, taken, <uint32_t>len(holes), total, data_set_at, implicit, big)
        try:
            w.prefix, w.prefix_length = <const uint8_t*>PyBytes_AS_STRING(uri_prefix), PyBytes_GET_SIZE(uri_prefix)
            w.inline_max = inline_max
            w.charset_wanted = wanted is None or wanted.charset
            if wanted is not None:
                w.nodes, w.stop_after, w.levels[0].node = wanted.nodes, wanted.stop_after, wanted.first
            w.out_max = OUT_BASE + 8 * <uint64_t>head.shape[0]
            w.out_room = 4096 if wanted is not None else 4096 + 3 * <uint64_t>head.shape[0]
            w.out = <uint8_t*>malloc(w.out_room)
            w.member_room = 512
            w.members = <Member*>malloc(w.member_room * sizeof(Member))
            if w.out == NULL or w.members == NULL:
                raise MemoryError
            w.out[0] = c"{"
            w.out_size = 1
            # The GIL is kept for a head of the usual size: giving it up costs more than the work.
            if head.shape[0] < NOGIL_MIN:
                status = walk(w)
            else:
                with nogil:
                    status = walk(w)
            put(w, b"}", 1)
            if status != DONE or w.out_of_memory or w.too_long:
                _raise(w, status if status != DONE else TOO_LONG if w.too_long else OUT_OF_MEMORY)
            return PyBytes_FromStringAndSize(<const char*>w.out, w.out_size)
        finally:
            end_walk(w)
    finally:
        free(taken)


def find(const uint8_t[::1] head not None, holes, uint64_t data_set_at, bint implicit, bint big, path):
    """Find the element at the end of a path; see _dicomjson.pyi."""
    cdef uint64_t total
    cdef Hole* taken
    cdef Walk* w
    cdef Status status
    cdef Paths wanted
    cdef uint32_t[DEPTH_MAX] items
    cdef Py_ssize_t i, steps = len(path)
    if steps > DEPTH_MAX or not steps:
        return None
    wanted = Paths([tuple(tag for tag, _ in path)])
    for i in range(steps):
        items[i] = path[i][1]
    taken = _holes_of(holes, head.shape[0], &total)
    try:
        w = _start(head, taken, <uint32_t>len(holes), total, data_set_at, implicit, big)
        try:
            w.nodes, w.stop_after, w.levels[0].node = wanted.nodes, wanted.stop_after, wanted.first
            w.items, w.searching = items, True
            status = walk(w)
            if w.found.there:
                return (w.found.offset, w.found.length, chr(w.found.vr >> 8) + chr(w.found.vr & 0xFF),
                        bool(w.found.hole), bool(w.found.encapsulated), bool(w.found.big),
                        PyBytes_FromStringAndSize(<const char*>w.found.charset, w.found.charset_length))
            if status != DONE:
                _raise(w, status)
            return None
        finally:
            end_walk(w)
    finally:
        free(taken)

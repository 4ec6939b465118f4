# cython: language_level=3, boundscheck=False, wraparound=False
# cython: initializedcheck=False, cdivision=True, embedsignature=True
"""Takes the body of a multipart request in chunks, cut anywhere; gives its parts as events. Copies no part
body but for the few bytes of a line that may be a boundary and stands astride two chunks. Knows no HTTP and no
DICOM, and keeps nothing of a part.

RFC 2046 5.1.1, Common Syntax. The line ends of a body are CRLF; those of a sender that writes LF only are told
by its first boundary line, and taken as they are from there on. Before that line and behind the last one all
is passed over.

Above the line "Python boundary" all is `noexcept nogil` and speaks in C; below it all holds the GIL.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcmp, memcpy

from hilum.errors import BadQuery

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <string.h>
    /* C's own memmem, wherever the header hides it without _GNU_SOURCE. */
    extern void *memmem(const void *, size_t, const void *, size_t);
    """
    void* memmem(const void* data, size_t size, const void* needle, size_t needle_size) noexcept nogil

cdef enum:
    BOUNDARY_MAX = 200          # RFC 2046 says 70; some senders write more
    PADDING_MAX = 64            # blanks behind a boundary: RFC 2046's transport padding
    NEEDLE_MAX = 4 + BOUNDARY_MAX
    CANDIDATE_MAX = NEEDLE_MAX + PADDING_MAX + 2
    PREAMBLE_MAX = 65536        # bytes in front of the first boundary

cdef enum Match:
    NO_BOUNDARY = 0
    CUT = 1         # it may be one: the bytes end before it is told
    NEXT_PART = 2
    LAST = 3

cdef enum State:
    PREAMBLE = 0
    HEADERS = 1
    BODY = 2
    EPILOGUE = 3

cdef struct Needle:
    const uint8_t* data     # [CR] LF "--" boundary
    size_t size


cdef Match match_at(Needle needle, const uint8_t* p, size_t n, size_t* length, bint* lf_only) noexcept nogil:
    """Whether a boundary line begins at `p`; `length` is that of the whole line."""
    cdef size_t i = needle.size
    if memcmp(p, needle.data, n if n < i else i) != 0:
        return NO_BOUNDARY
    if n <= i:
        return CUT
    if p[i] == c"-":
        if n == i + 1:
            return CUT
        if p[i + 1] != c"-":
            return NO_BOUNDARY          # a longer boundary, of a body inside this part
        length[0] = i + 2
        return LAST
    while i < n and (p[i] == c" " or p[i] == c"\t"):
        i += 1
        if i - needle.size > PADDING_MAX:
            return NO_BOUNDARY
    if i == n:
        return CUT
    lf_only[0] = p[i] == c"\n"
    if lf_only[0]:
        length[0] = i + 1
        return NEXT_PART
    if p[i] != c"\r":
        return NO_BOUNDARY
    if i + 1 == n:
        return CUT
    if p[i + 1] != c"\n":
        return NO_BOUNDARY
    length[0] = i + 2
    return NEXT_PART


cdef Match find(Needle needle, const uint8_t* p, size_t n, size_t* at, size_t* length, bint* lf_only) noexcept nogil:
    """The first boundary line in `n` bytes, or the first place where one may begin that is cut off."""
    cdef size_t begin = 0
    cdef const uint8_t* found
    cdef Match match
    while n - begin >= needle.size:
        found = <const uint8_t*>memmem(p + begin, n - begin, needle.data, needle.size)
        if found == NULL:
            begin = n - needle.size + 1
            break
        at[0] = found - p
        match = match_at(needle, found, n - at[0], length, lf_only)
        if match != NO_BOUNDARY:
            return match
        begin = at[0] + 1
    while begin < n:
        found = <const uint8_t*>memchr(p + begin, needle.data[0], n - begin)
        if found == NULL:
            return NO_BOUNDARY
        at[0] = found - p
        if match_at(needle, found, n - at[0], length, lf_only) == CUT:
            return CUT
        begin = at[0] + 1
    return NO_BOUNDARY


# --- Python boundary ---------------------------------------------------------

PART_BEGIN, PART_DATA, PART_END, BODY_END = range(4)

BOUNDARY_LENGTH_MAX = BOUNDARY_MAX
PREAMBLE_LENGTH_MAX = PREAMBLE_MAX


cdef class Scanner:
    """One body. Feed its chunks in order, then finish()."""

    cdef uint8_t line[NEEDLE_MAX]               # CR LF "--" boundary
    cdef uint8_t held[2 * CANDIDATE_MAX]        # bytes that may begin a boundary line, and room to look behind them
    cdef size_t held_size
    cdef size_t held_made_up                    # of these, how many are ours and not the body's
    cdef size_t line_size
    cdef State state
    cdef bint lf_only
    cdef size_t preamble
    cdef bytearray headers
    cdef Py_ssize_t header_bytes_max
    cdef Py_ssize_t header_count_max

    def __init__(self, boundary: bytes, *, header_bytes_max: int = 16384, header_count_max: int = 64):
        cdef Py_ssize_t size = len(boundary)
        cdef const uint8_t* data = boundary
        if not 0 < size <= BOUNDARY_MAX:
            raise BadQuery(f"a boundary has 1 to {BOUNDARY_MAX} bytes, and this one {size}")
        for byte in boundary:
            if byte < 0x20 or byte > 0x7E:
                raise BadQuery("a boundary is made of printable ASCII characters")
        memcpy(self.line, b"\r\n--", 4)
        memcpy(self.line + 4, data, size)
        self.line_size = size + 4
        self.state = PREAMBLE
        self.lf_only = True     # until the first boundary line tells: LF ends a line in either case
        self.preamble = 0
        self.headers = bytearray()
        self.header_bytes_max = header_bytes_max
        self.header_count_max = header_count_max
        self.begin_line()

    cdef Needle needle(self):
        cdef size_t skipped = 1 if self.lf_only else 0
        cdef const uint8_t* line = self.line
        return Needle(line + skipped, self.line_size - skipped)

    cdef void begin_line(self):
        """What comes next stands at the begin of a line: a boundary needs no line end of its own."""
        cdef size_t size = 1 if self.lf_only else 2
        memcpy(self.held, self.line + 2 - size, size)
        self.held_size = self.held_made_up = size

    def feed(self, chunk not None):
        """Give the events in these bytes: [(kind, value)].

        PART_BEGIN has the part's header fields, PART_DATA a view of `chunk` (or of a few bytes kept from the
        chunk before); PART_END and BODY_END have None. Names of fields are lower case; of a field that is there
        twice the first counts.

        Raises:
            BadQuery: a header field without a colon or end, headers over the limits, no boundary at all.
        """
        cdef const uint8_t[::1] data = chunk
        cdef size_t n = data.shape[0], at = 0
        cdef const uint8_t* p = &data[0] if n else NULL
        cdef list events = []
        while at < n and self.state != EPILOGUE:
            if self.state == HEADERS:
                at = self.take_headers(p, at, n, events)
            else:
                at = self.take_body(p, at, n, memoryview(chunk), events)
        return events

    def finish(self):
        """Say that the body is over.

        Raises:
            BadQuery: its last boundary has not come.
        """
        if self.state == PREAMBLE:
            raise BadQuery("the body has no line with the boundary that Content-Type names")
        if self.state != EPILOGUE:
            raise BadQuery("the body ends before its last boundary")

    cdef size_t take_body(self, const uint8_t* p, size_t at, size_t n, object view, list events) except? 0:
        cdef size_t found = 0, length = 0, room, total
        cdef bint lf_only = False
        cdef Match match
        if self.held_size:
            room = n - at if n - at < CANDIDATE_MAX else CANDIDATE_MAX
            memcpy(self.held + self.held_size, p + at, room)
            total = self.held_size + room
            match = find(self.needle(), self.held, total, &found, &length, &lf_only)
            # What begins behind the held bytes is for the search below, which has all that follows.
            if match != NO_BOUNDARY and found < self.held_size:
                self.give_held(found, events)
                if match == CUT:                # the chunk is over too: there was room for a whole line
                    self.keep(self.held + found, total - found, found)
                    return n
                at += found + length - self.held_size
                self.held_size = 0
                self.end_part(match, lf_only, events)
                return at
            self.give_held(self.held_size, events)
            self.held_size = 0
        match = find(self.needle(), p + at, n - at, &found, &length, &lf_only)
        if match == NO_BOUNDARY:
            found = n - at
        if self.state == PREAMBLE:
            self.preamble += found
            if self.preamble > PREAMBLE_MAX:
                raise BadQuery(f"the boundary that Content-Type names is not in the first {PREAMBLE_MAX} bytes")
        elif found:
            events.append((PART_DATA, view[at:at + found]))
        at += found
        if match == NO_BOUNDARY:
            return n
        if match == CUT:
            self.held_made_up = 0
            self.keep(p + at, n - at, 0)
            return n
        self.end_part(match, lf_only, events)
        return at + length

    cdef void keep(self, const uint8_t* p, size_t size, size_t gone):
        """Hold `size` bytes back. `gone` of those that were held so far are given."""
        cdef size_t i
        for i in range(size):       # forward, since they may overlap
            self.held[i] = p[i]
        self.held_size = size
        self.held_made_up = self.held_made_up - gone if self.held_made_up > gone else 0

    cdef void give_held(self, size_t size, list events):
        if self.state == BODY and size > self.held_made_up:
            events.append((PART_DATA, memoryview((<const char*>self.held)[self.held_made_up:size])))

    cdef void end_part(self, Match match, bint lf_only, list events):
        if self.state == PREAMBLE:
            self.lf_only = lf_only
        else:
            events.append((PART_END, None))
        if match == LAST:
            self.state = EPILOGUE
            events.append((BODY_END, None))
        else:
            self.state = HEADERS
            self.headers.clear()

    cdef size_t take_headers(self, const uint8_t* p, size_t at, size_t n, list events) except? 0:
        cdef Py_ssize_t before = len(self.headers), end
        cdef size_t room = self.header_bytes_max - before + 1
        if room > n - at:
            room = n - at
        self.headers += (<const char*>p)[at:at + room]
        end = _end_of_headers(self.headers)
        if end < 0:
            if len(self.headers) > self.header_bytes_max:
                raise BadQuery(f"the header fields of a part have more than {self.header_bytes_max} bytes")
            return at + room
        events.append((PART_BEGIN, self.fields(bytes(self.headers[:end]))))
        self.state = BODY
        self.begin_line()
        return at + (end - before)

    def fields(self, raw: bytes):
        fields: dict = {}
        name = None
        is_new = False
        count = 0
        for line in raw.decode("latin-1").split("\n"):
            line = line.removesuffix("\r")
            if not line:
                continue
            if line[0] in " \t" and name is not None:       # RFC 5322 2.2.3: a folded line goes on with the one before
                if is_new:
                    fields[name] = f"{fields[name]} {line.strip()}"
                continue
            name, colon, value = line.partition(":")
            name = name.strip().lower()
            if not colon or not name:
                raise BadQuery(f"a part begins with {line[:60]!r}, which is no header field")
            count += 1
            if count > self.header_count_max:
                raise BadQuery(f"a part has more than {self.header_count_max} header fields")
            is_new = name not in fields
            fields.setdefault(name, value.strip())
        return fields


cdef Py_ssize_t _end_of_headers(bytearray headers):
    """Where the first empty line ends; -1 if there is none yet."""
    if headers.startswith(b"\r\n"):
        return 2
    if headers.startswith(b"\n"):
        return 1
    cdef Py_ssize_t crlf = headers.find(b"\n\r\n"), lf = headers.find(b"\n\n")
    if crlf >= 0 and (lf < 0 or crlf < lf):
        return crlf + 3
    return lf + 2 if lf >= 0 else -1

# cython: language_level=3, boundscheck=False, wraparound=False
# cython: initializedcheck=False, cdivision=True, embedsignature=True
"""Takes what an instance is made of; gives the bytes that packs and index hold of it. Reads nothing back.

The layouts are those of docs/format.md; record.py and packs.py have the reading half of each, and tests hold
the two against each other. All of it is work of microseconds, so the GIL is kept, but for the write itself.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EINTR, ENOSPC, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import os

from blake3 import blake3
from isal.isal_zlib import crc32

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t pwritev(int fd, const iovec* iov, int iovcnt, int64_t offset)

cdef enum:
    HEAD_SIZE = 48          # _HEAD of record.py
    HOLE_SIZE = 56          # _HOLE there
    INSTANCE_SIZE = 72      # _INSTANCE there
    PIXELS_SIZE = 20        # _PIXELS there
    RECORD_SIZE = 64        # of packs.py
    DIGEST_SIZE = 32
    DIGEST_BLAKE3 = 1
    CODEC_RAW = 0
    IOV_COUNT_MAX = 1024    # buffers in one pwritev
    QUEUE_MAX = IOV_COUNT_MAX // 2
    SLOT_SIZE = RECORD_SIZE + 8     # the padding of the record before, and a record's header

cdef uint32_t RECORD_MAGIC = 0x4D4C4948
cdef uint32_t POLYNOMIAL = 0xEDB88320   # CRC-32 of ISO 3309, reflected


# --- Bytes in little endian ----------------------------------------------------


cdef inline uint8_t* put16(uint8_t* to, uint16_t value) noexcept nogil:
    to[0], to[1] = value & 0xFF, value >> 8
    return to + 2


cdef inline uint8_t* put32(uint8_t* to, uint32_t value) noexcept nogil:
    to[0], to[1], to[2], to[3] = value & 0xFF, value >> 8 & 0xFF, value >> 16 & 0xFF, value >> 24
    return to + 4


cdef inline uint8_t* put64(uint8_t* to, uint64_t value) noexcept nogil:
    return put32(put32(to, <uint32_t>value), <uint32_t>(value >> 32))


cdef inline uint8_t* put_bytes(uint8_t* to, bytes value) noexcept:
    memcpy(to, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    return to + PyBytes_GET_SIZE(value)


cdef uint8_t* put_holes(uint8_t* to, holes, uint64_t base, bint with_crc) except NULL:
    """Holes as record.py's _HOLE; offsets count from `base`."""
    cdef bytes digest
    for offset, length, tag, crc, digest in holes:
        if PyBytes_GET_SIZE(digest) != DIGEST_SIZE:
            raise ValueError("a digest has 32 bytes")
        to = put64(put64(to, <uint64_t>offset - base), <uint64_t>length)
        to = put32(put32(to, <uint32_t>tag), <uint32_t>crc if with_crc else 0)
        to = put_bytes(to, digest)
    return to


# --- CRC-32 ---------------------------------------------------------------------


cdef uint32_t[256] CRC_OF_BYTE
cdef uint32_t[64] POWER         # x to the 2 to the n, modulo the polynomial


cdef uint32_t times(uint32_t a, uint32_t b) noexcept nogil:
    """The product of two polynomials modulo that of the CRC; the highest bit is x to the 0."""
    cdef uint32_t product = 0, bit = <uint32_t>1 << 31
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = b >> 1 ^ POLYNOMIAL if b & 1 else b >> 1
    return product


cdef void make_tables() noexcept:
    cdef uint32_t crc
    cdef int i, j
    for i in range(256):
        crc = i
        for j in range(8):
            crc = crc >> 1 ^ POLYNOMIAL if crc & 1 else crc >> 1
        CRC_OF_BYTE[i] = crc
    POWER[0] = <uint32_t>1 << 30    # x
    for i in range(1, 64):
        POWER[i] = times(POWER[i - 1], POWER[i - 1])


make_tables()


cdef uint32_t short_crc(const uint8_t* data, Py_ssize_t length, uint32_t crc) noexcept nogil:
    """For some dozens of bytes, where calling a library costs more."""
    cdef Py_ssize_t i
    crc = ~crc
    for i in range(length):
        crc = CRC_OF_BYTE[(crc ^ data[i]) & 0xFF] ^ crc >> 8
    return ~crc


def crc_of_two(uint32_t first, uint32_t second, uint64_t second_length):
    """The CRC-32 of two stretches of bytes one after the other, from the CRC-32 of each."""
    cdef uint32_t shift = <uint32_t>1 << 31     # x to the 0
    cdef int bit = 3                            # bytes to bits
    while second_length:
        if second_length & 1:
            shift = times(POWER[bit], shift)
        second_length >>= 1
        bit += 1
    return times(shift, first) ^ second


# --- In a head pack ---------------------------------------------------------------


def pack_head(
    uint8_t version,
    uint8_t flags,
    uint64_t original_length,
    uint32_t original_crc,
    uint32_t data_set_at,
    uint64_t arrived_us,
    bytes transfer_syntax not None,
    bytes source not None,
    holes,
    bytes head not None,
    inflated_holes,
    bytes inflated not None,
):
    """The head part of a head record's payload, which record.unpack_head reads.

    Raises:
        OverflowError: a count or length is more than its field holds.
    """
    cdef uint16_t hole_count = len(holes), source_length = PyBytes_GET_SIZE(source)
    cdef uint8_t inflated_hole_count = len(inflated_holes), syntax_length = PyBytes_GET_SIZE(transfer_syntax)
    cdef uint32_t head_length = PyBytes_GET_SIZE(head), inflated_length = PyBytes_GET_SIZE(inflated)
    if (
        hole_count != len(holes)
        or source_length != len(source)
        or inflated_hole_count != len(inflated_holes)
        or syntax_length != len(transfer_syntax)
        or head_length != len(head)
        or inflated_length != len(inflated)
    ):
        raise OverflowError("more than a head record holds")
    cdef Py_ssize_t size = HEAD_SIZE + <Py_ssize_t>syntax_length + source_length + head_length
    size += (<Py_ssize_t>hole_count + inflated_hole_count) * HOLE_SIZE + inflated_length
    cdef bytes payload = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t* begin = <uint8_t*>PyBytes_AS_STRING(payload)
    cdef uint8_t* to = begin + 4
    to[0], to[1] = version, flags
    to = put16(to + 2, hole_count)
    to = put32(put32(put64(to, original_length), original_crc), data_set_at)
    to = put32(put32(put64(to, arrived_us), head_length), inflated_length)
    to = put16(put16(to, syntax_length | <uint16_t>inflated_hole_count << 8), source_length)
    to = put_bytes(put_bytes(put32(to, 0), transfer_syntax), source)
    to = put_holes(put_holes(to, holes, 0, True), inflated_holes, 0, True)
    to = put_bytes(put_bytes(to, head), inflated)
    if to != begin + size:
        raise AssertionError("a head record has another length than was counted")
    put32(begin, crc32(memoryview(payload)[4:]))
    return payload


def identity_of(bytes transfer_syntax not None, uint64_t data_set_at, holes, bytes head not None):
    """BLAKE3-256 over transfer syntax, holes and the head's data set: see record.py."""
    cdef Py_ssize_t syntax_length = PyBytes_GET_SIZE(transfer_syntax), hole_count = len(holes)
    cdef Py_ssize_t rest = PyBytes_GET_SIZE(head) - <Py_ssize_t>data_set_at
    if syntax_length > 0xFF or rest < 0:
        raise OverflowError("no head has such a transfer syntax or begin")
    cdef bytes hashed = PyBytes_FromStringAndSize(NULL, 1 + syntax_length + hole_count * HOLE_SIZE + rest)
    cdef uint8_t* to = <uint8_t*>PyBytes_AS_STRING(hashed)
    to[0] = <uint8_t>syntax_length
    to = put_holes(put_bytes(to + 1, transfer_syntax), holes, data_set_at, False)
    memcpy(to, PyBytes_AS_STRING(head) + data_set_at, rest)
    return blake3(hashed).digest()


# --- In the index -----------------------------------------------------------------


def pack_instance(
    uint8_t version,
    uint8_t flags,
    uint8_t syntax_code,
    uint8_t pixels,
    uint32_t container,
    uint64_t offset,
    uint32_t head_length,
    uint32_t table_length,
    uint64_t sequence,
    uint64_t original_length,
    bytes identity not None,
    uint64_t pixel_offset,
    uint64_t pixel_length,
    uint32_t pixel_crc,
    bytes pixel_digest not None,
    bytes spelt_syntax not None,
    bytes entries not None,
):
    """An instance's record, which record.unpack_instance reads; `spelt_syntax` is empty where a code says it."""
    if PyBytes_GET_SIZE(identity) != DIGEST_SIZE or PyBytes_GET_SIZE(spelt_syntax) > 0xFF:
        raise OverflowError("more than an instance record holds")
    cdef Py_ssize_t size = INSTANCE_SIZE + PyBytes_GET_SIZE(entries)
    if pixels:
        size += PIXELS_SIZE + PyBytes_GET_SIZE(pixel_digest)
    if spelt_syntax:
        size += 1 + PyBytes_GET_SIZE(spelt_syntax)
    cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t* to = <uint8_t*>PyBytes_AS_STRING(data)
    to[0], to[1], to[2], to[3] = version, flags, syntax_code, pixels
    to = put32(put32(put64(put32(to + 4, container), offset), head_length), table_length)
    to = put_bytes(put64(put64(to, sequence), original_length), identity)
    if pixels:
        to = put_bytes(put32(put64(put64(to, pixel_offset), pixel_length), pixel_crc), pixel_digest)
    if spelt_syntax:
        to[0] = <uint8_t>PyBytes_GET_SIZE(spelt_syntax)
        to = put_bytes(to + 1, spelt_syntax)
    put_bytes(to, entries)
    return data


# --- Records on their way to a pack -------------------------------------------------


cdef uint8_t* put_record(
    uint8_t* to, uint64_t salt, uint8_t kind, uint64_t length, uint64_t sequence, bytes digest, uint32_t crc
) noexcept:
    """A record's header, mixed with the pack's salt: see packs.py."""
    cdef uint8_t* tail = to + 8
    tail[0], tail[1], tail[2], tail[3] = kind, CODEC_RAW, DIGEST_BLAKE3, 0
    put_bytes(put64(put64(put32(tail + 4, crc), length), sequence), digest)
    put32(put32(to, RECORD_MAGIC ^ <uint32_t>salt), short_crc(tail, RECORD_SIZE - 8, <uint32_t>(salt >> 32)))
    return to + RECORD_SIZE


def record_header(
    uint64_t salt, uint8_t kind, uint64_t length, uint64_t sequence, bytes digest not None, uint32_t crc
):
    """The header of one record, for a payload that was written elsewhere."""
    if PyBytes_GET_SIZE(digest) != DIGEST_SIZE:
        raise AssertionError("a digest has 32 bytes")
    cdef bytes header = PyBytes_FromStringAndSize(NULL, RECORD_SIZE)
    put_record(<uint8_t*>PyBytes_AS_STRING(header), salt, kind, length, sequence, digest, crc)
    return header


cdef class RecordQueue:
    """Records that wait to be written, one after another. Payloads are referred to, not copied."""

    cdef uint64_t salt
    cdef readonly uint64_t length       # bytes that write() would write
    cdef readonly Py_ssize_t count      # of records
    cdef Py_buffer[QUEUE_MAX] payloads
    cdef uint8_t[(QUEUE_MAX + 1) * SLOT_SIZE] slots     # for each record the padding before it, and its header
    cdef uint8_t[QUEUE_MAX + 1] slot_sizes
    cdef int pad                        # bytes that must follow the last payload

    def __cinit__(self, uint64_t salt):
        self.salt = salt
        self.length = 0
        self.count = 0
        self.pad = 0

    def __dealloc__(self):
        self.clear()

    cdef void clear(self) noexcept:
        cdef Py_ssize_t i
        for i in range(self.count):
            PyBuffer_Release(&self.payloads[i])
        self.count = 0
        self.length = 0
        self.pad = 0

    @property
    def is_full(self):
        """Whether add() would refuse: write() first."""
        return self.count == QUEUE_MAX

    def add(self, uint8_t kind, payload, uint64_t sequence, bytes digest not None, uint32_t crc):
        """Queue one record; return the bytes that it takes in the pack, header and padding included.

        `payload` must stay as it is until write().
        """
        cdef uint8_t* slot = self.slots + self.count * SLOT_SIZE
        cdef uint64_t size
        if self.count == QUEUE_MAX or PyBytes_GET_SIZE(digest) != DIGEST_SIZE:
            raise AssertionError("the queue is full, or this is no digest")
        PyObject_GetBuffer(payload, &self.payloads[self.count], PyBUF_SIMPLE)
        size = self.payloads[self.count].len
        memset(slot, 0, self.pad)
        put_record(slot + self.pad, self.salt, kind, size, sequence, digest, crc)
        self.slot_sizes[self.count] = <uint8_t>(self.pad + RECORD_SIZE)
        self.pad = -<int>(size & 7) & 7
        self.count += 1
        size += RECORD_SIZE + self.pad
        self.length += size
        return size

    def write(self, int fd, int64_t offset):
        """Write all of it to `fd` from `offset` on, and forget it, whether or not that fails.

        Raises:
            OSError: the kernel refused; how much was written is unknown.
        """
        cdef iovec[IOV_COUNT_MAX + 2] vector
        cdef int count = 0, first = 0, error = 0
        cdef uint64_t left = self.length
        cdef ssize_t done
        cdef Py_ssize_t i
        for i in range(self.count):
            vector[count].iov_base = self.slots + i * SLOT_SIZE
            vector[count].iov_len = self.slot_sizes[i]
            count += 1
            if self.payloads[i].len:
                vector[count].iov_base = self.payloads[i].buf
                vector[count].iov_len = self.payloads[i].len
                count += 1
        if self.pad:
            memset(self.slots + self.count * SLOT_SIZE, 0, self.pad)
            vector[count].iov_base = self.slots + self.count * SLOT_SIZE
            vector[count].iov_len = self.pad
            count += 1
        with nogil:
            while left:
                done = pwritev(fd, vector + first, min(count - first, <int>IOV_COUNT_MAX), offset)
                if done < 0 and errno == EINTR:
                    continue
                if done <= 0:
                    error = errno if done < 0 else ENOSPC
                    break
                left -= done
                offset += done
                while done and <size_t>done >= vector[first].iov_len:
                    done -= vector[first].iov_len
                    first += 1
                if done:    # a part of this one
                    vector[first].iov_base = <uint8_t*>vector[first].iov_base + done
                    vector[first].iov_len -= done
        self.clear()
        if error:
            raise OSError(error, os.strerror(error))

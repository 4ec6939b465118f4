# cython: language_level=3, boundscheck=False, wraparound=False
# cython: initializedcheck=False, cdivision=True, embedsignature=True
"""Takes a descriptor and a place; gives the bytes there if they are in the page cache. Never waits for a disk.

The bytes go from the kernel into the object that is given: os.preadv would want a buffer, and a second copy.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t
from posix.types cimport off_t

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len
    ssize_t preadv2(int fd, const iovec* parts, int count, off_t offset, int flags)
    enum: RWF_NOWAIT


def read_now(int fd, Py_ssize_t length, int64_t offset):
    """Return `length` bytes from `offset` on, None where that would be to wait, or there are fewer."""
    cdef iovec part
    if length < 0 or offset < 0:
        return None
    data = PyBytes_FromStringAndSize(NULL, length)
    part.iov_base = PyBytes_AS_STRING(data)
    part.iov_len = length
    # The GIL is kept: this is a copy of microseconds, and whoever gives it up beside a busy thread waits for it
    # up to the switch interval, 5 ms.
    if preadv2(fd, &part, 1, offset, RWF_NOWAIT) != length:
        return None
    return data

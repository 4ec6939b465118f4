# cython: language_level=3, boundscheck=False, wraparound=False
# cython: initializedcheck=False, cdivision=True, embedsignature=True
"""Takes paths and an arena; gives each file's bytes in the arena. Parses nothing and writes nothing to disk.

A batch is read in one call with the GIL given up once, not once for each file: beside a busy thread
each return of the GIL may cost 5 ms.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.fcntl cimport O_CLOEXEC, O_NOCTTY, O_NONBLOCK, O_RDONLY, open
from posix.stat cimport S_ISREG, fstat, struct_stat
from posix.unistd cimport close, read

cdef enum:
    NOT_REGULAR = -1    # a folder, pipe or device
    TOO_LARGE = -2      # larger than the caller takes at once; nothing was read
    GROWN = -3          # the file changed its size while it was read

cdef struct FileStatus:     # little endian, as every machine is that this runs on
    uint64_t size
    int64_t mtime_ns
    int64_t ctime_ns
    uint64_t inode

cdef struct Job:
    const char* path
    uint64_t offset
    FileStatus status
    int error           # 0, an errno, or one of the above


cdef bint read_one(Job* job, uint8_t* arena, uint64_t used, uint64_t room, uint64_t size_max) noexcept nogil:
    """Read one file to arena + used. False when the arena has no room left for it."""
    cdef struct_stat st
    cdef uint64_t done = 0
    cdef ssize_t got
    cdef uint8_t extra
    cdef int fd = open(job.path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)  # NONBLOCK: a pipe must not hang us
    if fd < 0:
        job.error = errno
        return True
    if fstat(fd, &st) != 0:
        job.error = errno
        close(fd)
        return True
    job.status.size = st.st_size
    job.status.inode = st.st_ino
    job.status.mtime_ns = <int64_t>st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec
    job.status.ctime_ns = <int64_t>st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec
    job.offset = used
    job.error = 0
    if not S_ISREG(st.st_mode):
        job.error = NOT_REGULAR
    elif job.status.size > size_max:
        job.error = TOO_LARGE
    elif job.status.size > room - used:
        close(fd)
        return False
    else:
        while done < job.status.size:
            got = read(fd, arena + used + done, job.status.size - done)
            if got < 0:
                if errno == EINTR:
                    continue
                job.error = errno
                break
            if got == 0:
                job.error = GROWN
                break
            done += got
    close(fd)
    return True


# --- Python boundary ---------------------------------------------------------

ERROR_NOT_REGULAR = NOT_REGULAR
ERROR_TOO_LARGE = TOO_LARGE
ERROR_GROWN = GROWN


def read_files(
    list paths not None, Py_ssize_t first, uint8_t[::1] arena not None, uint64_t size_max, uint64_t enough
):
    """Read paths[first:], each bytes, one after another into `arena` until it holds `enough` bytes or is full.

    Return [(offset, size, status, error)] for as many as were handled, at least one; `error` is 0, an errno or an
    ERROR_ constant. `status` tells whether a file is still the same: its FileStatus as bytes. A file larger
    than `size_max` bytes, which must not be more than the arena, is told apart and not read.
    """
    cdef Py_ssize_t count = len(paths) - first, handled = 0, i
    cdef uint64_t used = 0, room = arena.shape[0]
    cdef Job* jobs
    cdef bytes path     # borrowed from the list, which outlives the call
    if size_max > room:
        raise ValueError(f"files of {size_max} bytes do not fit an arena of {room}")
    if count <= 0:
        return []
    jobs = <Job*>malloc(count * sizeof(Job))
    if jobs == NULL:
        raise MemoryError
    try:
        for i in range(count):
            path = paths[first + i]
            jobs[i].path = path
            jobs[i].offset = 0
            jobs[i].status = FileStatus(0, 0, 0, 0)
        with nogil:
            while handled < count and used < enough:
                if not read_one(&jobs[handled], &arena[0], used, room, size_max):
                    break
                if jobs[handled].error == 0:
                    used += jobs[handled].status.size
                handled += 1
        return [(jobs[i].offset, jobs[i].status.size,
                 PyBytes_FromStringAndSize(<char*>&jobs[i].status, sizeof(FileStatus)), jobs[i].error)
                for i in range(handled)]
    finally:
        free(jobs)

/* Takes the system calls with which a program changes the files under one root; gives a log with one
 * record for each call that succeeded, in the order in which they happened. Preloaded by trace.py,
 * which is also the only reader of the log.
 *
 *   POWERLOSS_ROOT   the folder that is watched: canonical, without a slash at its end
 *   POWERLOSS_LOG    the log: it exists, and lies outside the root
 *   POWERLOSS_ACK    what is written to this file is an acknowledgement; it lies outside the root
 *
 * One rule makes the rest short: nothing is remembered between two calls. A descriptor is known by fstat and
 * by /proc/self/fd, so that dup, close, fork, exec and descriptors sent to another process need no care, and
 * the log is opened anew for each record, so that a program which closes every descriptor loses nothing.
 *
 * The log's lock (flock on a description of our own, so it holds between threads and between processes) is
 * taken before the call and given back after its record: the order in the log is the order in the kernel.
 * The price is that recorded calls of two threads never overlap.
 *
 * All work is done by raw system calls: the recorder cannot record itself, needs no dlsym, and
 * takes no memory from the heap except to read back what copy_file_range and sendfile copied.
 *
 * Linux with glibc, 64 bits. Not seen: stdio (fopen, fwrite), io_uring, splice, syscall(), reflink
 * ioctls, static programs. trace.py plays the log back and compares: what was not seen is an error there.
 */
#undef _FILE_OFFSET_BITS /* open and open64 are two names here, not one */
#undef _FORTIFY_SOURCE   /* no inline bodies for the functions that are defined below */
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#if __SIZEOF_POINTER__ != 8 || !defined(__GLIBC__)
#error "the recorder is written for glibc on 64 bits"
#endif

#define PATH_SIZE 4352 /* PATH_MAX and room for " (deleted)" */
#define MAGIC 0x4c504853u

/* Same numbers as KINDS in trace.py. */
enum op {
    OP_CREATE = 1,
    OP_WRITE,
    OP_TRUNCATE,
    OP_FALLOCATE,
    OP_FSYNC,
    OP_FDATASYNC,
    OP_SYNC_FILE_RANGE,
    OP_SYNC,
    OP_RENAME,
    OP_LINK,
    OP_UNLINK,
    OP_MKDIR,
    OP_RMDIR,
    OP_ACK,
    OP_REFUSED
};

/* Same layout as HEADER in trace.py; then path, path2 and data follow. */
struct record {
    uint32_t magic;
    uint32_t op;
    uint64_t dev;
    uint64_t inode;      /* of the file or folder that the call is about; 0: not known */
    uint64_t folder;     /* inode of the folder that holds `path`; 0: none */
    uint64_t folder2;    /* the same of `path2` */
    int64_t offset;      /* from the start of the file; fallocate: the same */
    int64_t length;      /* bytes written, new size, or length of the range */
    uint32_t flags;      /* write: 1 is durable at once; fallocate: its mode */
    uint32_t pid;
    uint32_t path_size;
    uint32_t path2_size;
    uint64_t data_size;
};

/* A name in a folder, found before the call that changes it. */
struct place {
    int folder_fd;
    uint64_t dev, folder;
    char path[PATH_SIZE]; /* of the folder, a slash, and the name */
};

static int active;
static char root_path[PATH_SIZE];
static char log_path[PATH_SIZE];
static char ack_path[PATH_SIZE];
static size_t root_size;

static void die(const char *why)
{
    static const char us[] = "powerloss recorder: ";
    syscall(SYS_write, 2, us, sizeof us - 1);
    syscall(SYS_write, 2, why, strlen(why));
    syscall(SYS_write, 2, "\n", (size_t)1);
    abort();
}

__attribute__((constructor)) static void start(void)
{
    const char *root = getenv("POWERLOSS_ROOT");
    const char *log = getenv("POWERLOSS_LOG");
    const char *ack = getenv("POWERLOSS_ACK");

    if (root == NULL || log == NULL)
        return;
    if (strlen(root) >= PATH_MAX || strlen(log) >= PATH_MAX || (ack != NULL && strlen(ack) >= PATH_MAX))
        die("a path in the environment is too long");
    strcpy(root_path, root);
    strcpy(log_path, log);
    strcpy(ack_path, ack != NULL ? ack : "");
    root_size = strlen(root_path);
    active = 1;
}

static int under_root(const char *path)
{
    return strncmp(path, root_path, root_size) == 0 && (path[root_size] == '/' || path[root_size] == '\0');
}

/* --- the log ------------------------------------------------------------------------------------- */

static int lock_log(void)
{
    int fd = (int)syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_APPEND | O_CLOEXEC, 0);

    if (fd < 0)
        die("cannot open the log");
    while (syscall(SYS_flock, fd, LOCK_EX) != 0)
        if (errno != EINTR)
            die("cannot lock the log");
    return fd;
}

static void unlock_log(int fd)
{
    /* Said aloud: a child forked meanwhile has a copy of fd, and close alone would leave it the lock. */
    syscall(SYS_flock, fd, LOCK_UN);
    syscall(SYS_close, fd);
}

static void append(int log, const void *data, size_t size)
{
    const char *at = data;

    while (size > 0) {
        long n = syscall(SYS_write, log, at, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            die("cannot write the log");
        at += n;
        size -= (size_t)n;
    }
}

/* Log `r` with its paths and the first r.length bytes of the buffers. Only OP_WRITE and OP_ACK have data. */
static void emit(int log, struct record r, const char *path, const char *path2, const struct iovec *iov)
{
    char head[sizeof r + 2 * PATH_SIZE];
    uint64_t left;

    r.magic = MAGIC;
    r.pid = (uint32_t)syscall(SYS_getpid);
    r.path_size = (uint32_t)strlen(path);
    r.path2_size = (uint32_t)strlen(path2);
    r.data_size = iov != NULL ? (uint64_t)r.length : 0;
    memcpy(head, &r, sizeof r);
    memcpy(head + sizeof r, path, r.path_size);
    memcpy(head + sizeof r + r.path_size, path2, r.path2_size);
    append(log, head, sizeof r + r.path_size + r.path2_size);
    for (left = r.data_size; left > 0; iov++) {
        size_t size = iov->iov_len < left ? iov->iov_len : (size_t)left;
        append(log, iov->iov_base, size);
        left -= size;
    }
}

static void refuse(int log, const char *path, const char *why)
{
    emit(log, (struct record){.op = OP_REFUSED}, path, why, NULL);
}

/* --- what a descriptor or a name means ------------------------------------------------------------ */

static int path_of(int fd, char path[PATH_SIZE])
{
    char link[64];
    long size;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_SIZE - 1);
    if (size < 0)
        return -1;
    path[size] = '\0';
    return 0;
}

enum target { NOT_OURS, FILE_UNDER_ROOT, FOLDER_UNDER_ROOT, ACK_FILE };

static enum target target_of(int fd, struct stat *st, char path[PATH_SIZE])
{
    int before = errno;
    enum target target = NOT_OURS;

    if (active && fstat(fd, st) == 0 && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode))
        && path_of(fd, path) == 0) {
        if (under_root(path))
            target = S_ISREG(st->st_mode) ? FILE_UNDER_ROOT : FOLDER_UNDER_ROOT;
        else if (strcmp(path, ack_path) == 0)
            target = ACK_FILE;
    }
    errno = before;
    return target;
}

/* Find the folder that `path` names an entry of. Gives 1 if that folder is the root or lies under it;
 * then place->folder_fd is open and leave() must follow. */
static int enter(int dirfd, const char *path, struct place *place)
{
    char folder[PATH_SIZE];
    size_t size;
    const char *slash, *name;
    struct stat st;
    int before = errno;
    int fd;

    if (!active || path == NULL || (size = strlen(path)) == 0 || size >= PATH_MAX)
        return 0;
    while (size > 1 && path[size - 1] == '/') /* "name/" names the same folder as "name" */
        size--;
    slash = memrchr(path, '/', size);
    name = slash != NULL ? slash + 1 : path;
    if (slash == NULL)
        strcpy(folder, ".");
    else {
        memcpy(folder, path, (size_t)(slash - path) + 1);
        folder[slash - path + 1] = '\0';
    }
    fd = (int)syscall(SYS_openat, dirfd, folder, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    errno = before;
    if (fd < 0)
        return 0;
    if (path_of(fd, place->path) != 0 || !under_root(place->path) || fstat(fd, &st) != 0) {
        syscall(SYS_close, fd);
        errno = before;
        return 0;
    }
    size -= (size_t)(name - path);
    if (strlen(place->path) + 1 + size >= PATH_SIZE)
        die("a path under the root is too long");
    strcat(place->path, "/");
    strncat(place->path, name, size);
    place->folder_fd = fd;
    place->dev = st.st_dev;
    place->folder = st.st_ino;
    return 1;
}

static void leave(struct place *place)
{
    int before = errno;

    syscall(SYS_close, place->folder_fd);
    errno = before;
}

static int entry(const struct place *place, struct stat *st)
{
    int before = errno;
    int found = fstatat(AT_FDCWD, place->path, st, AT_SYMLINK_NOFOLLOW) == 0;

    errno = before;
    return found;
}

/* --- one recorded call ------------------------------------------------------------------------- */

/* Each call is begin..(), the system call, end..(). If begin says 0 the call is none of ours and only passes
 * through; otherwise the log is locked until end, which logs a success and gives back the call's result. */
struct call {
    int log;
    int before; /* errno, given back after a success */
    int fd;
    enum target target;
    struct stat st;
    char path[PATH_SIZE];
};

static int begin_on_fd(struct call *call, int fd)
{
    call->before = errno;
    call->fd = fd;
    call->target = target_of(fd, &call->st, call->path);
    if (call->target == NOT_OURS)
        return 0;
    call->log = lock_log();
    return 1;
}

static long end(struct call *call, long result, int failure)
{
    unlock_log(call->log);
    errno = result >= 0 ? call->before : failure;
    return result;
}

/* End a call whose result is 0 for success, and which is about the file or folder of a descriptor. */
static int end_on_fd(struct call *call, struct record r, long result)
{
    int failure = errno;

    r.dev = call->st.st_dev;
    r.inode = call->st.st_ino;
    if (result == 0 && call->target != ACK_FILE)
        emit(call->log, r, call->path, "", NULL);
    return (int)end(call, result, failure);
}

static int begin_on_name(struct call *call, struct place *place, int dirfd, const char *path)
{
    call->before = errno;
    if (!enter(dirfd, path, place))
        return 0;
    call->log = lock_log();
    return 1;
}

/* End a call whose result is 0 for success, and which made or removed one name. */
static int end_on_name(struct call *call, struct place *place, enum op op, long result)
{
    int failure = errno;
    struct record r = {.op = op, .dev = place->dev, .folder = place->folder};
    struct stat st;

    if (result == 0 && entry(place, &st))
        r.inode = st.st_ino;
    if (result == 0)
        emit(call->log, r, place->path, "", NULL);
    leave(place);
    return (int)end(call, result, failure);
}

/* --- open -------------------------------------------------------------------------------------- */

static int open_nameless(int dirfd, const char *path, int flags, mode_t mode)
{
    struct call call = {.before = errno, .log = lock_log()};
    int fd = (int)syscall(SYS_openat, dirfd, path, flags, mode);
    int failure = errno;

    if (fd >= 0 && target_of(fd, &call.st, call.path) == FILE_UNDER_ROOT) {
        struct record r = {.op = OP_CREATE, .dev = call.st.st_dev, .inode = call.st.st_ino};
        emit(call.log, r, call.path, "", NULL);
    }
    return (int)end(&call, fd, failure);
}

static int do_open(int dirfd, const char *path, int flags, mode_t mode)
{
    struct call call;
    struct place place;
    struct stat was, is;
    int existed, failure, fd;

    if (active && (flags & O_TMPFILE) == O_TMPFILE)
        return open_nameless(dirfd, path, flags, mode);
    if (!(flags & (O_CREAT | O_TRUNC)) || !begin_on_name(&call, &place, dirfd, path))
        return (int)syscall(SYS_openat, dirfd, path, flags, mode);

    existed = entry(&place, &was);
    fd = (int)syscall(SYS_openat, dirfd, path, flags, mode);
    failure = errno;
    if (fd >= 0 && fstat(fd, &is) == 0) {
        struct record r = {.dev = is.st_dev, .inode = is.st_ino, .folder = place.folder};
        if (existed && S_ISLNK(was.st_mode))
            refuse(call.log, place.path, "opened for writing through a symbolic link");
        else if (!existed) {
            r.op = OP_CREATE;
            emit(call.log, r, place.path, "", NULL);
        } else if ((flags & O_TRUNC) && S_ISREG(was.st_mode) && was.st_size > 0) {
            r.op = OP_TRUNCATE;
            emit(call.log, r, place.path, "", NULL);
        }
    }
    leave(&place);
    return (int)end(&call, fd, failure);
}

/* The mode is only there if the flags ask for it. */
#define MODE_AFTER(flags, mode)                                                   \
    do {                                                                          \
        if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) {          \
            va_list more;                                                         \
            va_start(more, flags);                                                \
            (mode) = va_arg(more, mode_t);                                        \
            va_end(more);                                                         \
        }                                                                         \
    } while (0)

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE_AFTER(flags, mode);
    return do_open(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE_AFTER(flags, mode);
    return do_open(AT_FDCWD, path, flags, mode);
}

int openat(int dirfd, const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE_AFTER(flags, mode);
    return do_open(dirfd, path, flags, mode);
}

int openat64(int dirfd, const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE_AFTER(flags, mode);
    return do_open(dirfd, path, flags, mode);
}

int creat(const char *path, mode_t mode)
{
    return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode)
{
    return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}


/* What open becomes under _FORTIFY_SOURCE: without O_CREAT, but O_TRUNC is possible. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dirfd, const char *path, int flags);
int __openat64_2(int dirfd, const char *path, int flags);

int __open_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __openat_2(int dirfd, const char *path, int flags) { return do_open(dirfd, path, flags, 0); }
int __openat64_2(int dirfd, const char *path, int flags) { return do_open(dirfd, path, flags, 0); }

/* --- write ------------------------------------------------------------------------------------- */

enum how { AT_POSITION, AT_OFFSET };

/* End a call that wrote the first n bytes of the buffers (n < 0: failed, not logged). */
static ssize_t end_write(struct call *call, enum how how, off_t offset, int write_flags,
                         const struct iovec *iov, long n)
{
    int failure = errno;
    struct record r = {.op = call->target == ACK_FILE ? OP_ACK : OP_WRITE, .length = n};
    struct stat st;
    int flags;

    if (n > 0) {
        flags = (int)syscall(SYS_fcntl, call->fd, F_GETFL);
        if (flags < 0 || fstat(call->fd, &st) != 0)
            die("a descriptor was closed while it was written to");
        r.dev = st.st_dev;
        r.inode = st.st_ino;
        if ((flags & O_APPEND) || (write_flags & RWF_APPEND))
            r.offset = st.st_size - n; /* Linux appends even for pwrite, whatever its offset */
        else if (how == AT_OFFSET)
            r.offset = offset;
        else
            r.offset = syscall(SYS_lseek, call->fd, (off_t)0, SEEK_CUR) - n;
        r.flags = (flags & O_DSYNC) || (write_flags & (RWF_DSYNC | RWF_SYNC)); /* O_SYNC includes O_DSYNC */
        emit(call->log, r, call->path, "", iov);
    }
    return (ssize_t)end(call, n, failure);
}

ssize_t write(int fd, const void *data, size_t size)
{
    struct iovec iov = {(void *)(uintptr_t)data, size};
    struct call call;
    int ours = begin_on_fd(&call, fd);
    long n = syscall(SYS_write, fd, data, size);

    return ours ? end_write(&call, AT_POSITION, 0, 0, &iov, n) : n;
}

static ssize_t do_pwrite(int fd, const void *data, size_t size, off_t offset)
{
    struct iovec iov = {(void *)(uintptr_t)data, size};
    struct call call;
    int ours = begin_on_fd(&call, fd);
    long n = syscall(SYS_pwrite64, fd, data, size, offset);

    return ours ? end_write(&call, AT_OFFSET, offset, 0, &iov, n) : n;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    return do_pwrite(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    return do_pwrite(fd, data, size, offset);
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
    struct call call;
    int ours = begin_on_fd(&call, fd);
    long n = syscall(SYS_writev, fd, iov, count);

    return ours ? end_write(&call, AT_POSITION, 0, 0, iov, n) : n;
}

/* The kernel takes the offset in two halves; on 64 bits the first holds all of it. */
static ssize_t do_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    struct call call;
    int ours = begin_on_fd(&call, fd);
    long n = syscall(SYS_pwritev, fd, iov, count, offset, 0L);

    return ours ? end_write(&call, AT_OFFSET, offset, 0, iov, n) : n;
}

static ssize_t do_pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    struct call call;
    int ours = begin_on_fd(&call, fd);
    long n = syscall(SYS_pwritev2, fd, iov, count, offset, 0L, flags);

    return ours ? end_write(&call, offset == -1 ? AT_POSITION : AT_OFFSET, offset, flags, iov, n) : n;
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    return do_pwritev(fd, iov, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *iov, int count, off64_t offset)
{
    return do_pwritev(fd, iov, count, offset);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return do_pwritev2(fd, iov, count, offset, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off64_t offset, int flags)
{
    return do_pwritev2(fd, iov, count, offset, flags);
}

/* End a call with which the kernel copied n bytes to `offset` (-1: up to the position): read them back, and
 * log a write. */
static ssize_t end_copy(struct call *call, off_t offset, long n)
{
    char link[64];
    struct iovec iov;
    long done, got;
    int readable;

    if (n <= 0)
        return (ssize_t)end(call, n, errno);
    if (offset < 0)
        offset = syscall(SYS_lseek, call->fd, (off_t)0, SEEK_CUR) - n;
    iov = (struct iovec){malloc((size_t)n), (size_t)n};
    snprintf(link, sizeof link, "/proc/self/fd/%d", call->fd); /* fd itself may be open for writing only */
    readable = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
    if (readable < 0 || iov.iov_base == NULL)
        die("cannot read back what was copied");
    for (done = 0; done < n; done += got) {
        got = syscall(SYS_pread64, readable, (char *)iov.iov_base + done, (size_t)(n - done), offset + done);
        if (got <= 0)
            die("cannot read back what was copied");
    }
    syscall(SYS_close, readable);
    n = end_write(call, AT_OFFSET, offset, 0, &iov, n);
    free(iov.iov_base);
    return (ssize_t)n;
}

ssize_t copy_file_range(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t size,
                        unsigned int flags)
{
    struct call call;
    off_t offset = out_offset != NULL ? *out_offset : -1; /* the call moves it */
    int ours = begin_on_fd(&call, out);
    long n = syscall(SYS_copy_file_range, in, in_offset, out, out_offset, size, flags);

    return ours ? end_copy(&call, offset, n) : n;
}

static ssize_t do_sendfile(int out, int in, off_t *in_offset, size_t size)
{
    struct call call;
    int ours = begin_on_fd(&call, out);
    long n = syscall(SYS_sendfile, out, in, in_offset, size);

    return ours ? end_copy(&call, -1, n) : n;
}

ssize_t sendfile(int out, int in, off_t *in_offset, size_t size)
{
    return do_sendfile(out, in, in_offset, size);
}

ssize_t sendfile64(int out, int in, off64_t *in_offset, size_t size)
{
    return do_sendfile(out, in, in_offset, size);
}

/* --- size and durability ----------------------------------------------------------------------- */

int fsync(int fd)
{
    struct call call;
    int ours = begin_on_fd(&call, fd);
    long result = syscall(SYS_fsync, fd);

    return ours ? end_on_fd(&call, (struct record){.op = OP_FSYNC}, result) : (int)result;
}

int fdatasync(int fd)
{
    struct call call;
    int ours = begin_on_fd(&call, fd);
    long result = syscall(SYS_fdatasync, fd);

    return ours ? end_on_fd(&call, (struct record){.op = OP_FDATASYNC}, result) : (int)result;
}

int syncfs(int fd)
{
    struct call call;
    int ours = begin_on_fd(&call, fd);
    long result = syscall(SYS_syncfs, fd);

    return ours ? end_on_fd(&call, (struct record){.op = OP_SYNC}, result) : (int)result;
}

void sync(void)
{
    int log;

    if (!active) {
        syscall(SYS_sync);
        return;
    }
    log = lock_log();
    syscall(SYS_sync);
    emit(log, (struct record){.op = OP_SYNC}, root_path, "", NULL);
    unlock_log(log);
}

int sync_file_range(int fd, off64_t offset, off64_t length, unsigned int flags)
{
    struct call call;
    struct record r = {.op = OP_SYNC_FILE_RANGE, .offset = offset, .length = length};
    int ours = begin_on_fd(&call, fd);
    long result = syscall(SYS_sync_file_range, fd, offset, length, flags);

    return ours ? end_on_fd(&call, r, result) : (int)result;
}

static int do_ftruncate(int fd, off_t size)
{
    struct call call;
    int ours = begin_on_fd(&call, fd);
    long result = syscall(SYS_ftruncate, fd, size);

    return ours ? end_on_fd(&call, (struct record){.op = OP_TRUNCATE, .length = size}, result) : (int)result;
}

int ftruncate(int fd, off_t size) { return do_ftruncate(fd, size); }
int ftruncate64(int fd, off64_t size) { return do_ftruncate(fd, size); }

static int do_truncate(const char *path, off_t size)
{
    struct call call;
    int before = errno;
    int fd = active ? (int)syscall(SYS_openat, AT_FDCWD, path, O_PATH | O_CLOEXEC, 0) : -1;
    int ours, failure;
    long result;

    errno = before;
    ours = begin_on_fd(&call, fd); /* of a descriptor below 0: no */
    result = syscall(SYS_truncate, path, size);
    if (ours)
        result = end_on_fd(&call, (struct record){.op = OP_TRUNCATE, .length = size}, result);
    failure = errno;
    if (fd >= 0)
        syscall(SYS_close, fd);
    errno = failure;
    return (int)result;
}

int truncate(const char *path, off_t size) { return do_truncate(path, size); }
int truncate64(const char *path, off64_t size) { return do_truncate(path, size); }

static int do_fallocate(int fd, int mode, off_t offset, off_t length)
{
    struct call call;
    struct record r = {.op = OP_FALLOCATE, .offset = offset, .length = length, .flags = (uint32_t)mode};
    int ours = begin_on_fd(&call, fd);
    long result = syscall(SYS_fallocate, fd, mode, offset, length);

    return ours ? end_on_fd(&call, r, result) : (int)result;
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return do_fallocate(fd, mode, offset, length);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    return do_fallocate(fd, mode, offset, length);
}

/* Gives the error as its result and leaves errno alone. Where the file system cannot, glibc would write
 * zeros; here the caller sees EOPNOTSUPP. */
int posix_fallocate(int fd, off_t offset, off_t length)
{
    int before = errno;
    int failure = do_fallocate(fd, 0, offset, length) == 0 ? 0 : errno;

    errno = before;
    return failure;
}

int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }

/* A store through a map is no system call: it cannot be replayed, so the map itself makes trace.py refuse
 * the recording. LMDB keeps its table of readers in such a map, lock.mdb; nothing in it outlives the
 * processes that share it. */
static void *do_mmap(void *where, size_t size, int prot, int flags, int fd, off_t offset)
{
    void *map = (void *)syscall(SYS_mmap, where, size, prot, flags, fd, offset);
    int type = flags & MAP_TYPE;
    struct call call;

    if (map != MAP_FAILED && (prot & PROT_WRITE) && (type == MAP_SHARED || type == MAP_SHARED_VALIDATE)
        && !(flags & MAP_ANONYMOUS) && begin_on_fd(&call, fd)) {
        if (call.target == FILE_UNDER_ROOT && strcmp(strrchr(call.path, '/'), "/lock.mdb") != 0)
            refuse(call.log, call.path, "mapped shared and writable");
        end(&call, 0, 0);
    }
    return map;
}

void *mmap(void *where, size_t size, int prot, int flags, int fd, off_t offset)
{
    return do_mmap(where, size, prot, flags, fd, offset);
}

void *mmap64(void *where, size_t size, int prot, int flags, int fd, off64_t offset)
{
    return do_mmap(where, size, prot, flags, fd, offset);
}

/* --- names ------------------------------------------------------------------------------------- */

static int do_rename(int old_dirfd, const char *old, int new_dirfd, const char *new, unsigned int flags)
{
    struct call call = {.before = errno};
    struct place from, to;
    struct stat st;
    int from_ours = enter(old_dirfd, old, &from);
    int to_ours = enter(new_dirfd, new, &to);
    int failure, result;

    if (!from_ours && !to_ours)
        return (int)syscall(SYS_renameat2, old_dirfd, old, new_dirfd, new, flags);
    call.log = lock_log();
    result = (int)syscall(SYS_renameat2, old_dirfd, old, new_dirfd, new, flags);
    failure = errno;
    if (result == 0 && !from_ours)
        refuse(call.log, to.path, "moved in from outside the root");
    else if (result == 0 && !to_ours)
        refuse(call.log, from.path, "moved out of the root");
    else if (result == 0 && (flags & ~(unsigned int)RENAME_NOREPLACE))
        refuse(call.log, to.path, "renamed with RENAME_EXCHANGE or RENAME_WHITEOUT");
    else if (result == 0) {
        struct record r = {.op = OP_RENAME, .dev = to.dev, .folder = from.folder, .folder2 = to.folder};
        if (entry(&to, &st))
            r.inode = st.st_ino;
        emit(call.log, r, from.path, to.path, NULL);
    }
    if (from_ours)
        leave(&from);
    if (to_ours)
        leave(&to);
    return (int)end(&call, result, failure);
}

int rename(const char *old, const char *new) { return do_rename(AT_FDCWD, old, AT_FDCWD, new, 0); }

int renameat(int old_dirfd, const char *old, int new_dirfd, const char *new)
{
    return do_rename(old_dirfd, old, new_dirfd, new, 0);
}

int renameat2(int old_dirfd, const char *old, int new_dirfd, const char *new, unsigned int flags)
{
    return do_rename(old_dirfd, old, new_dirfd, new, flags);
}

static int do_unlink(int dirfd, const char *path, int flags)
{
    struct call call;
    struct place place;
    int ours = begin_on_name(&call, &place, dirfd, path);
    enum op op = flags & AT_REMOVEDIR ? OP_RMDIR : OP_UNLINK;
    long result = syscall(SYS_unlinkat, dirfd, path, flags);

    return ours ? end_on_name(&call, &place, op, result) : (int)result;
}

int unlink(const char *path) { return do_unlink(AT_FDCWD, path, 0); }
int unlinkat(int dirfd, const char *path, int flags) { return do_unlink(dirfd, path, flags); }
int rmdir(const char *path) { return do_unlink(AT_FDCWD, path, AT_REMOVEDIR); }

int remove(const char *path)
{
    int before = errno;

    if (do_unlink(AT_FDCWD, path, 0) == 0)
        return 0;
    if (errno != EISDIR)
        return -1;
    errno = before;
    return do_unlink(AT_FDCWD, path, AT_REMOVEDIR);
}

static int do_mkdir(int dirfd, const char *path, mode_t mode)
{
    struct call call;
    struct place place;
    int ours = begin_on_name(&call, &place, dirfd, path);
    long result = syscall(SYS_mkdirat, dirfd, path, mode);

    return ours ? end_on_name(&call, &place, OP_MKDIR, result) : (int)result;
}

int mkdir(const char *path, mode_t mode) { return do_mkdir(AT_FDCWD, path, mode); }
int mkdirat(int dirfd, const char *path, mode_t mode) { return do_mkdir(dirfd, path, mode); }

static int do_link(int old_dirfd, const char *old, int new_dirfd, const char *new, int flags)
{
    struct call call;
    struct place place;
    int ours = begin_on_name(&call, &place, new_dirfd, new);
    long result = syscall(SYS_linkat, old_dirfd, old, new_dirfd, new, flags);

    return ours ? end_on_name(&call, &place, OP_LINK, result) : (int)result;
}

int link(const char *old, const char *new) { return do_link(AT_FDCWD, old, AT_FDCWD, new, 0); }

int linkat(int old_dirfd, const char *old, int new_dirfd, const char *new, int flags)
{
    return do_link(old_dirfd, old, new_dirfd, new, flags);
}

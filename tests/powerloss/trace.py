"""Takes a program that writes under a root; gives each state in which power loss can leave that root.

`record` runs the program, whole and unchanged, with recorder.c preloaded: what is replayed are its own system
calls and those of every library and child process in it. `Trace.images(i)` then gives what the disk can
hold if power goes after the first i of them. The disk is as weak as POSIX lets it be:

- A write is on disk for certain after fsync or fdatasync of its file, or if its descriptor was opened with
  O_DSYNC or O_SYNC. Until then it is there or not, without regard to the order of the writes; a part of it
  may be there; or the file may have grown for it and hold zeros.
- A name is on disk for certain after fsync of its folder; fsync of the file does nothing for it. Until then
  the changes of one folder land in their order, and stop anywhere.
- A rename within one folder lands whole. Between two folders the new name may land without the removal of the
  old one (both are there), the removal never without the new name. Folders move whole.
- Bytes that were synced never change, and a sector that was not written to is never damaged.

Nothing is assumed silently: at the end the replayed tree is compared with the real one, so that a way of
writing which the recorder cannot see raises NotReplayable, as does one that this page cannot replay.

Not simulated: modes, owners, times, extended attributes, symbolic links, bad sectors. A disk that lies about
a flush is Trace.weakened.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import random
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

PAGE = 4096
SECTOR = 512
ZEROS = bytes(PAGE)

# The numbers of `enum op` and the layout of `struct record` in recorder.c.
KINDS = [
    "",
    "create",
    "write",
    "truncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "sync",
    "rename",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "ack",
    "refused",
]
HEADER = struct.Struct("=IIQQQQqqIIIIQ")
MAGIC = 0x4C504853

# fallocate(2)
KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10

# LMDB stores to its lock file through a map, and makes the file anew when it opens an environment that
# nobody else has open. Its name and size are replayed, its bytes are not.
MAPPED = "lock.mdb"

# A few tears at any byte beside those between sectors: a disk doesn't do that, a reader should not care.
ODD_TEARS = 4


class RecordingFailed(Exception):
    """The recorder could not be built, or the program under it failed; its stderr is in the message."""


class NotReplayable(Exception):
    """The program changed its files in a way that the trace does not hold."""


Key = tuple[int, int]  # device, inode


@dataclass(frozen=True, slots=True)
class Op:
    """One system call that succeeded, or one acknowledgement.

    Paths are relative to the root, "." is the root itself. Offsets are from the start of the file; `length`
    is the count of bytes written, the new size (truncate) or the length of the range (fallocate). `durable`:
    a write through O_DSYNC or O_SYNC.
    """

    kind: str
    path: str
    path2: str = ""
    key: Key = (0, 0)
    folder: Key = (0, 0)
    folder2: Key = (0, 0)
    offset: int = 0
    length: int = 0
    mode: int = 0
    durable: bool = False
    data: bytes = field(default=b"", repr=False)
    pid: int = 0

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def name2(self) -> str:
        return os.path.basename(self.path2)


# --- bytes of a file ---------------------------------------------------------------------------------


class Content:
    """The bytes of one file: its size, and those pages that are not all zeros.

    Pages are shared between copies, so that thousands of images cost little more than one.
    """

    __slots__ = ("pages", "size")

    def __init__(self, size: int = 0, pages: dict[int, bytes] | None = None) -> None:
        self.size = size
        self.pages = {} if pages is None else pages

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Content:
        """Read a file; what the file system knows to be a hole is not read."""
        content = cls()
        fd = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            at = 0
            while at < size:
                try:
                    at = os.lseek(fd, at, os.SEEK_DATA)
                except OSError as failure:
                    if failure.errno != errno.ENXIO:
                        raise
                    break  # a hole up to the end
                stop = os.lseek(fd, at, os.SEEK_HOLE)
                content.write(at, os.pread(fd, min(stop - at, 1 << 24), at))
                at = min(stop, at + (1 << 24))
            content.resize(size)
        finally:
            os.close(fd)
        return content

    def copy(self) -> Content:
        return Content(self.size, dict(self.pages))

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        at = offset
        while at < end:
            index, start = divmod(at, PAGE)
            stop = min(PAGE, start + end - at)
            page = data[at - offset : at - offset + stop - start]
            if len(page) < PAGE:
                old = self.pages.get(index, ZEROS)
                page = old[:start] + page + old[stop:]
            if page == ZEROS:
                self.pages.pop(index, None)
            else:
                self.pages[index] = page
            at += stop - start
        self.size = max(self.size, end)

    def resize(self, size: int) -> None:
        if size < self.size:
            last, used = divmod(size, PAGE)
            for index in [index for index in self.pages if index > last or (index == last and used == 0)]:
                del self.pages[index]
            if last in self.pages:
                # Past the end a page is zeros: a file that grows again must not show old bytes.
                self.write(last * PAGE, self.pages[last][:used] + bytes(PAGE - used))
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        first, start = divmod(offset, PAGE)
        count = -(-(start + size) // PAGE)
        return b"".join(self.pages.get(first + n, ZEROS) for n in range(count))[start : start + size]

    def runs(self) -> Iterator[tuple[int, bytes]]:
        """Give (offset, bytes) of what is not a hole; the last run may end past the size, in zeros."""
        indexes = sorted(self.pages)
        for _, group in itertools.groupby(enumerate(indexes), lambda pair: pair[1] - pair[0]):
            run = [index for _, index in group]
            yield run[0] * PAGE, b"".join([self.pages[index] for index in run])

    def fingerprint(self) -> tuple[int, int]:
        """Equal for equal bytes; unequal bytes collide with the chance of a 64-bit hash.

        Quick because a bytes object keeps its hash, and pages are shared between images.
        """
        return self.size, hash(frozenset(self.pages.items()))

    def __bytes__(self) -> bytes:
        return self.read(0, self.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Content):
            return NotImplemented
        return self.size == other.size and self.pages == other.pages

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at an offset. `at` is the index of the op that made it."""

    at: int
    offset: int
    data: bytes
    durable: bool = False

    @property
    def end(self) -> int:
        return self.offset + len(self.data)

    def apply(self, content: Content) -> None:
        content.write(self.offset, self.data)

    def tear(self, kept: int, content: Content) -> None:
        """Let only the first `kept` bytes land."""
        content.write(self.offset, self.data[:kept])

    def scatter(self, content: Content, rng: random.Random) -> None:
        """Let each sector land or not, and with one chance in two the size of the whole."""
        for start, stop in itertools.pairwise([0, *self.sector_cuts(), len(self.data)]):
            if rng.random() < 0.5:
                content.write(self.offset + start, self.data[start:stop])
        if rng.random() < 0.5:
            self.grow(content)

    def grow(self, content: Content) -> None:
        """Let the size land, and no byte."""
        content.resize(max(content.size, self.end))

    def sector_cuts(self) -> range:
        """Counts of bytes that end a sector of the file, inside the write."""
        return range(SECTOR - self.offset % SECTOR, len(self.data), SECTOR)


@dataclass(frozen=True, slots=True)
class Resize:
    """A new size; with `grow_only` a size that the file has at least (fallocate)."""

    at: int
    size: int
    grow_only: bool = False
    durable: bool = False

    def apply(self, content: Content) -> None:
        content.resize(max(self.size, content.size) if self.grow_only else self.size)


# --- the disk ----------------------------------------------------------------------------------------


class File:
    """What is durable, what is not yet, and what a reader sees. Contents are replaced, never changed: images
    hold them."""

    def __init__(self, content: Content | None = None) -> None:
        self.durable = content or Content()
        self.current = self.durable
        self.pending: list[Write | Resize] = []  # since the last sync, in order

    def change(self, change: Write | Resize) -> None:
        self.current = self.current.copy()
        change.apply(self.current)
        if not change.durable or self.pending:
            # A durable write also waits here, behind earlier ones that may land under it.
            self.pending.append(change)
        else:
            self.durable = self.current

    def sync(self) -> None:
        self.durable = self.current
        self.pending = []

    def land(self, how: Callable[[Write | Resize, Content], None]) -> Content:
        """Start with what is durable; `how` lets each change land that need not be there."""
        if not self.pending:
            return self.durable
        content = self.durable.copy()
        for change in self.pending:
            if change.durable:
                change.apply(content)
            else:
                how(change, content)
        return content

    def synced(self) -> Content:
        return self.land(lambda change, content: None)

    def sized(self) -> Content:
        """What was synced, as long as the file is now."""
        content = self.synced().copy()
        content.resize(self.current.size)
        return content


@dataclass(eq=False, slots=True)
class Entry:
    """One change of a folder: a name goes, a name comes, or both (a rename within it).

    A rename between two folders is two of these, each with the other as `twin`.
    """

    folder: Folder
    removes: str | None = None
    adds: str | None = None
    node: Node | None = None
    twin: Entry | None = None

    def apply(self, names: dict[str, Node]) -> None:
        if self.removes is not None:
            names.pop(self.removes, None)
        if self.adds is not None and self.node is not None:
            names[self.adds] = self.node

    def brings(self) -> Entry | None:
        """The half that lands if this one does: a removal brings the new name; of a folder each brings
        the other."""
        return self.twin if self.removes is not None or isinstance(self.node, Folder) else None


class Folder:
    """The names that are durable, the changes that are not yet, and the names that a reader sees."""

    def __init__(self) -> None:
        self.durable: dict[str, Node] = {}
        self.current: dict[str, Node] = {}
        self.pending: list[Entry] = []

    def change(self, entry: Entry) -> None:
        entry.apply(self.current)
        self.pending.append(entry)

    def sync(self, count: int | None = None) -> None:
        """Make the first `count` changes durable, and what they bring with them elsewhere."""
        landed = self.pending[:count]
        del self.pending[:count]
        for entry in landed:
            entry.apply(self.durable)
        for entry in landed:
            other = entry.brings()
            if other is not None and other in other.folder.pending:
                other.folder.sync(other.folder.pending.index(other) + 1)


Node = File | Folder


class Disk:
    """The root as it was, and then changed by one op after the other."""

    def __init__(self, initial: _Tree) -> None:
        self.nodes: dict[Key, Node] = {}
        self.root = self._load(initial)
        self.folders = [node for node in self.nodes.values() if isinstance(node, Folder)]

    def _load(self, tree: _Tree) -> Folder:
        folder = Folder()
        self.nodes[tree.key] = folder
        for name, (key, child) in tree.files.items():
            node = self.nodes.setdefault(key, File(child))  # a hard link is one file
            folder.durable[name] = folder.current[name] = node
        for name, subtree in tree.folders.items():
            folder.durable[name] = folder.current[name] = self._load(subtree)
        return folder

    def _folder(self, key: Key, op: Op) -> Folder:
        node = self.nodes.get(key)
        if not isinstance(node, Folder):
            raise NotReplayable(f"{op.kind} of {op.path}: the recorder never saw its folder made")
        return node

    def file(self, op: Op) -> File:
        node = self.nodes.get(op.key)
        if not isinstance(node, File):
            raise NotReplayable(f"{op.kind} of {op.path}: the recorder never saw it made")
        return node

    def apply(self, at: int, op: Op) -> None:
        """Change the disk by op number `at`."""
        getattr(self, f"_{op.kind}")(at, op)

    def _create(self, at: int, op: Op) -> None:
        self.nodes[op.key] = node = File()
        if op.folder[1]:  # otherwise O_TMPFILE: no name yet
            folder = self._folder(op.folder, op)
            folder.change(Entry(folder, adds=op.name, node=node))

    def _mkdir(self, at: int, op: Op) -> None:
        self.nodes[op.key] = node = Folder()
        self.folders.append(node)
        folder = self._folder(op.folder, op)
        folder.change(Entry(folder, adds=op.name, node=node))

    def _link(self, at: int, op: Op) -> None:
        folder = self._folder(op.folder, op)
        folder.change(Entry(folder, adds=op.name, node=self.file(op)))

    def _unlink(self, at: int, op: Op) -> None:
        folder = self._folder(op.folder, op)
        folder.change(Entry(folder, removes=op.name))

    _rmdir = _unlink

    def _rename(self, at: int, op: Op) -> None:
        old, new = self._folder(op.folder, op), self._folder(op.folder2, op)
        node = old.current.get(op.name)
        if node is None:
            raise NotReplayable(f"rename of {op.path}: the recorder never saw it made")
        if new.current.get(op.name2) is node:
            return  # two names of one file: rename(2) does nothing, and says so
        if old is new:
            old.change(Entry(old, removes=op.name, adds=op.name2, node=node))
            return
        gone, come = Entry(old, removes=op.name), Entry(new, adds=op.name2, node=node)
        gone.twin, come.twin = come, gone
        new.change(come)
        old.change(gone)

    def _write(self, at: int, op: Op) -> None:
        self.file(op).change(Write(at, op.offset, op.data, op.durable))

    def _truncate(self, at: int, op: Op) -> None:
        self.file(op).change(Resize(at, op.length))

    def _fallocate(self, at: int, op: Op) -> None:
        file = self.file(op)
        end = op.offset + op.length
        if op.mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE):
            raise NotReplayable(f"fallocate of {op.path} with mode {op.mode:#x}")
        if not op.mode & KEEP_SIZE:
            file.change(Resize(at, end, grow_only=True))
        if op.mode & (PUNCH_HOLE | ZERO_RANGE) and op.offset < file.current.size:
            file.change(Write(at, op.offset, bytes(min(end, file.current.size) - op.offset)))

    def _fsync(self, at: int, op: Op) -> None:
        node = self.nodes.get(op.key)
        if node is None:
            raise NotReplayable(f"{op.kind} of {op.path}: the recorder never saw it made")
        node.sync()

    _fdatasync = _fsync  # of a folder too: ext4, XFS and Btrfs make no difference there

    def _sync(self, at: int, op: Op) -> None:
        for node in self.nodes.values():
            node.sync()

    def _sync_file_range(self, at: int, op: Op) -> None:
        """Starts the writing out, makes nothing durable: sync_file_range(2), Warning."""

    def _ack(self, at: int, op: Op) -> None:
        pass

    def last_unsynced_write(self) -> tuple[File, Write] | None:
        """The write that was made last of all that need not be on disk."""
        unsynced = [
            (change.at, file, change)
            for file in self.nodes.values()
            if isinstance(file, File)
            for change in file.pending
            if isinstance(change, Write) and not change.durable
        ]
        if not unsynced:
            return None
        _, file, change = max(unsynced, key=lambda found: found[0])
        return file, change

    def tree(
        self, landed: Callable[[Folder], int], content: Callable[[File], Content]
    ) -> tuple[dict[str, Content], list[str]]:
        """Give (files, folders) by path if of each folder the first `landed` changes are on disk, and
        of each file `content`. Hard links share one Content."""
        counts = {folder: landed(folder) for folder in self.folders}
        unsettled = [folder for folder in self.folders if counts[folder]]
        while unsettled:
            folder = unsettled.pop()
            for entry in folder.pending[: counts[folder]]:
                other = entry.brings()
                if other is not None and other in other.folder.pending[counts[other.folder] :]:
                    counts[other.folder] = other.folder.pending.index(other) + 1
                    unsettled.append(other.folder)

        files: dict[str, Content] = {}
        folders: list[str] = []
        contents: dict[File, Content] = {}
        walk: list[tuple[str, Node]] = [("", self.root)]
        while walk:
            path, node = walk.pop()
            if isinstance(node, File):
                if node not in contents:
                    contents[node] = content(node)
                files[path] = contents[node]
                continue
            if path:
                folders.append(path)
            names = dict(node.durable)
            for entry in node.pending[: counts[node]]:
                entry.apply(names)
            walk += [(os.path.join(path, name), names[name]) for name in sorted(names, reverse=True)]
        return files, folders


# --- what the caller sees -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Image:
    """One state in which the root can be found after the power went.

    `at` is how many ops had been made, `label` says in words what landed; both are for the message of a test.
    `acknowledged` is what the program had acknowledged by then. Paths are relative to the root.
    """

    at: int
    label: str
    acknowledged: tuple[str, ...]
    files: dict[str, Content]
    folders: tuple[str, ...]

    def read(self, path: str) -> bytes | None:
        """The bytes of one file, None if it is not there."""
        return bytes(self.files[path]) if path in self.files else None

    def write_to(self, directory: str | os.PathLike[str]) -> None:
        """Make the tree in `directory`, which is made if it is not there. Holes stay holes."""
        base = os.fspath(directory)
        os.makedirs(base, exist_ok=True)
        for path in self.folders:
            os.mkdir(os.path.join(base, path))
        made: dict[int, str] = {}
        for path, content in self.files.items():
            target = os.path.join(base, path)
            if (first := made.setdefault(id(content), target)) is not target:
                os.link(first, target)
                continue
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                for offset, data in content.runs():
                    os.pwrite(fd, data, offset)
                os.ftruncate(fd, content.size)
            finally:
                os.close(fd)

    def fingerprint(self) -> int:
        """Equal for images with the same names and bytes."""
        first: dict[int, str] = {}
        links = tuple((path, first.setdefault(id(content), path)) for path, content in self.files.items())
        contents = tuple(content.fingerprint() for content in self.files.values())
        return hash((self.folders, links, contents))


class Trace:
    """The ops of one run, in the order in which the kernel did them, and the root before the first."""

    def __init__(self, initial: _Tree, ops: Sequence[Op]) -> None:
        self.ops = list(ops)
        self._initial = initial
        self._disk = Disk(initial)
        self._disk_at = 0
        self._acknowledged: list[tuple[int, str]] = [
            (at, line)
            for at, op in enumerate(self.ops)
            if op.kind == "ack"
            for line in op.data.decode().splitlines()
        ]

    def acknowledged_before(self, i: int) -> list[str]:
        """The lines that were written to the ACK file by the first `i` ops."""
        return [line for at, line in self._acknowledged if at < i]

    def weakened(self, *kinds: str, path: str = "*") -> Trace:
        """The same run on a disk that breaks a promise, or by a writer that forgot a sync.

        `kinds`: "fsync", "fdatasync" and "sync" do nothing, after "dsync" O_DSYNC and O_SYNC
        mean nothing. `path` is a pattern as of fnmatch; other files are not touched. A test of
        durability that does not fail on the weakened trace proves nothing.
        """
        unknown = set(kinds) - {"fsync", "fdatasync", "sync", "dsync"}
        if unknown:
            raise ValueError(f"not a kind of sync: {sorted(unknown)}")
        ops = []
        for op in self.ops:
            if fnmatchcase(op.path, path):
                if op.kind in kinds:
                    op = Op(
                        "sync_file_range", op.path, key=op.key
                    )  # as many ops as before, and it does nothing
                elif "dsync" in kinds and op.durable:
                    op = dataclasses.replace(op, durable=False)
            ops.append(op)
        return Trace(self._initial, ops)

    def images(
        self, i: int, *, rng: random.Random, torn_max: int = 16, random_count: int = 8
    ) -> Iterator[Image]:
        """Give the states in which the disk can be found if power goes after the first `i` ops.

        Always: only what was synced; all that was written; each of the two with the names of the other; sizes
        without data; the last unsynced write torn, at most at `torn_max` places between its
        sectors and some bytes; a next write with O_DSYNC that was under way, torn in the same way. Then
        `random_count` states in which each unsynced change landed or not, some of them in part.

        The same bytes are given once. The order depends on `rng` only.
        """
        disk = self._disk_after(i)
        acknowledged = tuple(self.acknowledged_before(i))
        seen: set[int] = set()
        for label, (files, folders) in self._states(disk, i, rng, torn_max, random_count):
            image = Image(i, label, acknowledged, files, tuple(folders))
            print_ = image.fingerprint()
            if print_ not in seen:
                seen.add(print_)
                yield image

    def points(self, *, rng: random.Random, torn_max: int = 16, random_count: int = 8) -> Iterator[Image]:
        """Give the images of every point, from before the first op to behind the last.

        The same bytes come again only when more has been acknowledged: then they must hold more.
        """
        seen: set[tuple[int, int]] = set()
        for i in range(len(self.ops) + 1):
            for image in self.images(i, rng=rng, torn_max=torn_max, random_count=random_count):
                key = image.fingerprint(), len(image.acknowledged)
                if key not in seen:
                    seen.add(key)
                    yield image

    def _disk_after(self, i: int) -> Disk:
        if not 0 <= i <= len(self.ops):
            raise IndexError(f"there are {len(self.ops)} ops; {i} asked for")
        if i < self._disk_at:
            self._disk, self._disk_at = Disk(self._initial), 0
        for at in range(self._disk_at, i):
            self._disk.apply(at, self.ops[at])
        self._disk_at = i
        return self._disk

    def _states(
        self, disk: Disk, i: int, rng: random.Random, torn_max: int, random_count: int
    ) -> Iterator[tuple[str, tuple[dict[str, Content], list[str]]]]:
        def no_names(folder: Folder) -> int:
            return 0

        def all_names(folder: Folder) -> int:
            return len(folder.pending)

        def written(file: File) -> Content:
            return file.current

        yield "what was synced", disk.tree(no_names, File.synced)
        yield "all that was written", disk.tree(all_names, written)
        yield "all bytes, no unsynced names", disk.tree(no_names, written)
        yield "all names, no unsynced bytes", disk.tree(all_names, File.synced)
        yield "all names and sizes, no unsynced bytes", disk.tree(all_names, File.sized)

        if (last := disk.last_unsynced_write()) is not None:
            torn_file, write = last
            for label, damage in _tears(write, rng, torn_max):

                def torn(file: File, damage: Damage = damage) -> Content:
                    if file is not torn_file:
                        return file.current
                    return file.land(
                        lambda change, content: damage(content) if change is write else change.apply(content)
                    )

                yield f"all but op {write.at}, {label}", disk.tree(all_names, torn)

        if i < len(self.ops) and self.ops[i].kind == "write" and self.ops[i].durable:
            op = self.ops[i]
            flying_file = disk.file(op)
            for label, damage in _tears(Write(i, op.offset, op.data), rng, torn_max):
                for base, label_of_base, names in (
                    (written, "all that was written", all_names),
                    (File.synced, "what was synced", no_names),
                ):

                    def flying(
                        file: File, damage: Damage = damage, base: Callable[[File], Content] = base
                    ) -> Content:
                        content = base(file)
                        if file is flying_file:
                            content = content.copy()
                            damage(content)
                        return content

                    yield f"{label_of_base}, and op {i} under way, {label}", disk.tree(names, flying)

        for number in range(random_count):
            likely = rng.choice((0.2, 0.5, 0.8))  # few land, half of them, most

            def some_names(folder: Folder) -> int:
                return rng.randint(0, len(folder.pending))

            def some_bytes(file: File, likely: float = likely) -> Content:
                return file.land(lambda change, content: _land_perhaps(change, content, rng, likely))

            yield f"random state {number}", disk.tree(some_names, some_bytes)


Damage = Callable[[Content], None]


def _tears(write: Write, rng: random.Random, torn_max: int) -> Iterator[tuple[str, Damage]]:
    """Give ways in which `write` landed in part: not at all, only its size, its first bytes."""
    yield "absent", lambda content: None
    yield "zeros", write.grow
    cuts = set(write.sector_cuts())
    cuts |= {rng.randrange(1, len(write.data)) for _ in range(ODD_TEARS) if len(write.data) > 1}
    if len(cuts) > torn_max:
        cuts = set(rng.sample(sorted(cuts), torn_max))
    for kept in sorted(cuts):
        yield f"torn after {kept} of {len(write.data)} bytes", partial(write.tear, kept)


def _land_perhaps(change: Write | Resize, content: Content, rng: random.Random, likely: float) -> None:
    if rng.random() < likely:
        change.apply(content)
    elif isinstance(change, Write):
        match rng.randrange(6):
            case 0:
                change.tear(rng.choice([*change.sector_cuts(), rng.randrange(len(change.data))]), content)
            case 1:
                change.scatter(content, rng)
            case 2:
                change.grow(content)


# --- recording ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tree:
    """A folder as it lies on disk: (inode, bytes) of its files by name, and its folders."""

    key: Key
    files: dict[str, tuple[Key, Content]] = field(default_factory=dict)
    folders: dict[str, _Tree] = field(default_factory=dict)

    @classmethod
    def of(cls, path: str) -> _Tree:
        status = os.stat(path)
        tree = cls((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                key = status.st_dev, status.st_ino
                if stat.S_ISDIR(status.st_mode):
                    tree.folders[entry.name] = cls.of(entry.path)
                elif stat.S_ISREG(status.st_mode):
                    tree.files[entry.name] = key, Content.of_file(entry.path)
                else:
                    raise NotReplayable(f"{entry.path} is neither a file nor a folder")
        return tree

    def flat(self, path: str = "") -> Iterator[tuple[str, Content | None]]:
        """Give each path under this folder, with the bytes of files and None for folders."""
        for name, (_, content) in self.files.items():
            yield os.path.join(path, name), content
        for name, tree in self.folders.items():
            yield os.path.join(path, name), None
            yield from tree.flat(os.path.join(path, name))


def build_recorder(workdir: Path) -> Path:
    """Compile recorder.c into `workdir` unless that was done before; give the shared object.

    Raises:
        RecordingFailed: the compiler says no.
    """
    source = Path(__file__).with_name("recorder.c")
    recorder = workdir / "powerloss_recorder.so"
    if recorder.exists() and recorder.stat().st_mtime_ns >= source.stat().st_mtime_ns:
        return recorder
    made = workdir / f"powerloss_recorder.{os.getpid()}.so"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run(["gcc", *flags, "-o", made, source], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RecordingFailed(f"gcc could not build the recorder:\n{done.stderr}")
    made.replace(recorder)  # whole or not at all: another process may build the same one
    return recorder


def record(
    argv: Sequence[str | os.PathLike[str]],
    root: str | os.PathLike[str],
    *,
    workdir: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120,
) -> Trace:
    """Run a program and give what it, and every process it starts, did under `root`.

    What is under `root` before is part of the trace; the folder is made if it is not there. `workdir` holds
    the recorder, the log and the ACK file; it may hold the root, not the other way round. `env` is set on top
    of this process's environment. The program says "acknowledged" by writing whole lines to the file
    that the variable POWERLOSS_ACK names (it exists): one acknowledgement for each line.

    Raises:
        RecordingFailed: the recorder does not build, or the program fails.
        NotReplayable: the program wrote in a way that the trace does not hold.
        subprocess.TimeoutExpired: the program took longer than `timeout_s`.
    """
    workdir, root = Path(workdir).resolve(), Path(root).resolve()
    if workdir.is_relative_to(root):
        raise ValueError("the recorder's own files cannot lie under the root that it watches")
    workdir.mkdir(parents=True, exist_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    recorder = build_recorder(workdir)
    log, ack = workdir / "powerloss.log", workdir / "ACK"
    log.write_bytes(b"")
    ack.write_bytes(b"")
    initial = _Tree.of(str(root))

    environment = {**os.environ, **(env or {})}
    # Last: an allocator or sanitizer that is preloaded insists on being first.
    environment["LD_PRELOAD"] = " ".join(filter(None, [environment.get("LD_PRELOAD"), str(recorder)]))
    environment |= {"POWERLOSS_ROOT": str(root), "POWERLOSS_LOG": str(log), "POWERLOSS_ACK": str(ack)}
    done = subprocess.run(
        [os.fspath(argument) for argument in argv],
        env=environment,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        stderr = done.stderr.decode(errors="replace")
        raise RecordingFailed(f"the program ended with status {done.returncode}:\n{stderr}")

    trace = Trace(initial, list(_read_log(log.read_bytes(), str(root))))
    _compare(trace, root)
    return trace


def _read_log(log: bytes, root: str) -> Iterator[Op]:
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        if size > len(log) - at:
            raise NotReplayable("the log ends within a record: was a process killed while it wrote?")
        at += size
        return log[at - size : at]

    def relative(path: bytes) -> str:
        return os.path.relpath(os.fsdecode(path.removesuffix(b" (deleted)")), root) if path else ""

    refused = []
    while at < len(log):
        magic, op, dev, inode, folder, folder2, offset, length, flags, pid, *sizes = HEADER.unpack(
            take(HEADER.size)
        )
        if magic != MAGIC:
            raise NotReplayable("the log is damaged: was a process killed while it wrote?")
        path, path2, data = map(take, sizes)
        kind = KINDS[op]
        if kind == "refused":
            refused.append(f"{relative(path)}: {os.fsdecode(path2)}")
            continue
        yield Op(
            kind,
            relative(path) if kind != "ack" else "ACK",
            relative(path2),
            key=(dev, inode),
            folder=(dev, folder),
            folder2=(dev, folder2),
            offset=offset,
            length=length,
            mode=flags if kind == "fallocate" else 0,
            durable=kind == "write" and bool(flags),
            data=data,
            pid=pid,
        )
    if refused:
        raise NotReplayable("; ".join(refused))


def _compare(trace: Trace, root: Path) -> None:
    """Play everything back, and hold it against what really lies under the root."""
    disk = trace._disk_after(len(trace.ops))
    files, folders = disk.tree(lambda folder: len(folder.pending), lambda file: file.current)
    replayed = {**files, **dict.fromkeys(folders)}
    real = dict(_Tree.of(str(root)).flat())
    wrong = sorted(
        path
        for path in replayed.keys() | real.keys()
        if path not in replayed
        or path not in real
        or (os.path.basename(path) != MAPPED and replayed[path] != real[path])
    )
    if wrong:
        raise NotReplayable(f"the recorder did not see all that was done to {', '.join(wrong)}")

"""Every exception that Hilum raises on purpose, by whose fault it is. Never raises one itself.

HilumError
    RequestFault            the caller's
        BadDicom            the bytes are not a data set that we can index
        NotDicom            the bytes do not look like DICOM at all
        BadQuery            a key, value or argument that makes no sense
        NotFound            no such patient, study, series, instance or frame
        Conflict            the SOP Instance UID is taken by other bytes
        Unsupported         legal, but not offered here
    Busy                    nobody's: too much is asked for at this moment, try again
    StoreFault              ours, or the disk's
        Corrupt             bytes on disk are not what the index promises
        StoreMissing        no store, no index, or one of another version
        StoreLocked         another process holds the store for itself
        StoreBroken         a write or sync failed; reopen to recover
        ReadOnly            the store is on a file system that can't be written
"""

from __future__ import annotations


class HilumError(Exception):
    """Base of all; catch this one at the edge of a front end."""


class RequestFault(HilumError):
    """The caller gave something that can't be done."""


class StoreFault(HilumError):
    """The store, or the disk under it, is at fault."""


class Busy(HilumError):
    """Too much is asked for at this moment; the same request may be served a little later."""


class BadDicom(RequestFault):
    """A data set that can't be indexed.

    `offset` is in bytes from the start of the file, `tag` is 0xGGGGEEEE of the element there;
    `path` is the file, once someone who knows it has caught the error.
    """

    def __init__(self, reason: str, *, offset: int = 0, tag: int = 0, path: str | None = None) -> None:
        super().__init__(reason, offset, tag, path)
        self.reason, self.offset, self.tag, self.path = reason, offset, tag, path

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return (
            f"{where}{self.reason} at byte {self.offset}, tag ({self.tag >> 16:04X},{self.tag & 0xFFFF:04X})"
        )


class NotDicom(RequestFault):
    """Neither a Part 10 file nor anything that begins like a data set."""


class BadQuery(RequestFault):
    """A key that is no attribute, a value that its VR can't hold, a level that does not exist."""


class NotFound(RequestFault):
    """Nothing is stored under this name."""


class Conflict(RequestFault):
    """Other bytes are stored under this SOP Instance UID, and the policy keeps them."""


class Unsupported(RequestFault):
    """Legal, but not offered: a transfer syntax without a free decoder, say."""


class Corrupt(StoreFault):
    """Bytes on disk are not what the index promises."""


class StoreMissing(StoreFault):
    """There is no store here, or no index in it, or one of another version."""


class StoreLocked(StoreFault):
    """Another process holds the store for itself."""


class StoreBroken(StoreFault):
    """A write or sync failed, so the end of a pack is unknown; reopen the store to recover."""


class ReadOnly(StoreFault):
    """The store can be read but not written."""

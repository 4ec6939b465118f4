"""The face of Hilum for Python: the engine's store, with decoded frames and data sets. Adds no rule."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hilum.engine import store as engine

if TYPE_CHECKING:
    import numpy as np
    import pydicom

_DEFER_BYTES = 1024  # values longer than this are read when they are looked at


class Store(engine.Store):
    """A store that is open; see the engine's Store for find, ingest, read, head and frame_bytes."""

    def frame(self, uid: str, index: int) -> np.ndarray[Any, Any]:
        """Frame `index`, from 0, decoded: (rows, columns) or (rows, columns, samples).

        The dtype is by Bits Allocated and Pixel Representation (uint8, int16 ...; float32 and float64 for
        Float and Double Float Pixel Data; 0 and 1 in uint8 for Bits Allocated 1), little endian. YBR is
        converted to RGB; no window and no rescale is applied: these are the pixels of pydicom's pixel_array.

        Raises:
            NotFound: no such instance or frame.
            Unsupported: there is no free decoder for the transfer syntax.
            BadDicom: the frame can't be decoded.
            Corrupt: the bytes on disk are not what came in.
        """
        from hilum.pixels.decode import decode_frame

        instance = self.locate(uid).instance
        reader = self.frames(uid)
        syntax = instance.transfer_syntax.decode("latin-1")
        return decode_frame(reader.read(index), reader.layout, syntax)

    def dataset(self, uid: str) -> pydicom.FileDataset:
        """The object as pydicom reads it; values of more than 1 KiB are read when they are looked at.

        Raises:
            NotFound: no such instance.
            Corrupt: the head on disk is not what came in.
        """
        import pydicom

        file = self.open_original(uid)
        return pydicom.dcmread(file, defer_size=_DEFER_BYTES, force=True)


def open(path: str | os.PathLike[str], *, create: bool = False, read_only: bool = False) -> Store:
    """Open the store in the folder `path`; `create` makes one where there is none.

    Raises:
        StoreMissing: there is no store, or no index in it.
        StoreLocked: another process is rebuilding it.
        ReadOnly: it can't be written, and `read_only` is False.
    """
    return Store(os.fspath(path), create=create, read_only=read_only)

"""Hilum, a DICOM storage engine: `hilum.open(path)` gives a store. Importing it loads almost nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hilum import errors

if TYPE_CHECKING:
    from hilum.api import Store, open

__version__ = "0.1.0"
__all__ = ["Store", "__version__", "errors", "open"]


def __getattr__(name: str) -> Any:
    if name in ("Store", "open"):
        from hilum import api

        return getattr(api, name)
    raise AttributeError(f"module 'hilum' has no attribute {name!r}")

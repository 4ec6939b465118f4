"""Other archives that answer questions, DICOM nodes and DICOMweb servers alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hilum.cli import targets

if TYPE_CHECKING:
    from hilum.dimse.asking import Finder
    from hilum.remote.qido import Searcher


@contextmanager
def opened(
    target: str, call: targets.Call, *, fuzzy: bool = False, timezone: str = ""
) -> Iterator[Finder | Searcher]:
    """Who is asked; a peer that is both is asked as a DICOM node.

    Raises:
        BadQuery: there is no such peer.
        HilumError: it can't be reached.
    """
    settings = targets.load(call)
    peer = targets.peer_of(target, settings, tls=call.tls)
    if peer.host:
        from hilum.dimse.asking import Finder

        caller = targets.caller_of(target, peer, settings, call)
        with Finder(caller, fuzzy=fuzzy, timezone=timezone) as finder:
            yield finder
        return
    from hilum.remote.qido import Searcher

    with targets.client_of(peer, settings, call) as client:
        yield Searcher(client, fuzzy=fuzzy, timezone=timezone)

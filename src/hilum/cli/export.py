"""hilum export: stored files, byte for byte as they came in."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from hilum.cli import common
from hilum.errors import HilumError


@click.command("export")
@click.argument("dest")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE...]")
@common.common_options
def command(dest: str, pairs: tuple[str, ...], store_path: str, as_json: bool, verbose: bool) -> int:
    """Write files as they came in, as DEST/patient/study/series/instance.dcm.

    With keys, only what matches. A file that is there already, whole, is left alone, so that an interrupted
    export goes on when it is run again.

    \b
    Example:
        hilum export /tmp/out PatientID=4711
        hilum export /tmp/out StudyInstanceUID=1.2.3 --json
    """
    from hilum.transfer.arriving import file_path

    begin = time.monotonic()
    done = written = present = failed = size = 0
    progress = common.Progress("export", quiet=as_json)
    try:
        with common.open_store(store_path, read_only=True) as store:
            keys = common.parse_pairs(pairs)
            total = sum(len(uids) for _, uids in store.select(keys)) if not as_json else 0
            for row, uid in ((row, uid) for row, uids in store.select(keys) for uid in uids):
                done += 1
                path = file_path(dest, _parents(row), uid)
                try:
                    length = store.locate(uid).instance.original_length
                    if _is_there(store, uid, path, length):
                        present += 1
                    else:
                        os.makedirs(os.path.dirname(path), exist_ok=True)
                        _write(store, uid, path)
                        written += 1
                    size += length
                except (HilumError, OSError) as failure:
                    failed += 1
                    if as_json:
                        common.print_json({"failed": uid, "reason": str(failure)})
                    else:
                        progress.say(f"{uid}: {failure}")
                seconds = time.monotonic() - begin
                text = f"{done:,} of {total:,} files, {common.human_bytes(size / seconds)}/s"
                progress.update(done, total, text)
    finally:
        progress.close()
    seconds = time.monotonic() - begin
    if as_json:
        found: dict[str, float] = {
            "files": written + present + failed,
            "written": written,
            "present": present,
        }
        found |= {"failed": failed, "bytes": size, "seconds": round(seconds, 3)}
        common.print_json(found)
    else:
        click.echo(
            f"{written:,} files written, {present:,} were there, {failed:,} failed; "
            f"{common.human_bytes(size)} in {seconds:.1f} s"
        )
    return common.FAILED if failed else 0


def _parents(row: Any) -> tuple[str, str, str]:
    patient = row.text(0x00100020) or row.text(0x00100010)
    return patient, row.text(0x0020000D), row.text(0x0020000E)


def _is_there(store: Any, uid: str, path: str, length: int) -> bool:
    from isal.isal_zlib import crc32

    if not os.path.isfile(path) or os.path.getsize(path) != length:
        return False
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            crc = crc32(chunk, crc)
    there: bool = crc == store.head(uid).original_crc
    return there


def _write(store: Any, uid: str, path: str) -> None:
    """Under another name first: a file of the right name is whole."""
    part = path + ".part"
    try:
        with open(part, "wb") as file:
            for piece in store.chunks(uid):
                file.write(piece)
        os.replace(part, path)
    except BaseException:
        if os.path.exists(part):
            os.unlink(part)
        raise

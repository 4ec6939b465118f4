"""hilum move: let a DICOM node send to another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from hilum.cli import common, targets
from hilum.errors import BadQuery, HilumError

if TYPE_CHECKING:
    from hilum.dimse.fetching import Progress, Wanted
    from hilum.dimse.scu import Caller


@click.command("move")
@click.argument("target")
@click.argument("pairs", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.option(
    "--to", "destination", required=True, metavar="NAME", help="A peer, or an AE title that TARGET knows."
)
@targets.node_options
@common.common_options
def command(
    target: str,
    pairs: tuple[str, ...],
    destination: str,
    aet: str | None,
    tls: bool,
    seconds: float | None,
    config: str | None,
    store_path: str,
    as_json: bool,
    verbose: bool,
) -> int:
    """Let a DICOM node send to another (C-FIND, then C-MOVE), this one perhaps.

    The keys say what: all studies of a patient, a list of studies, some series or instances. The node must
    know the destination by its AE title.

    \b
    Example:
        hilum move pacs --to WORKSTATION3 StudyInstanceUID=1.2.3
        hilum move PACS@10.0.0.7:104 --to HILUM PatientID=4711
    """
    from hilum.dimse.fetching import Mover

    keys = common.parse_pairs(pairs)
    call = targets.Call(config, aet, seconds, tls)
    caller = targets.caller(target, call, answer_seconds=600.0)
    peer = targets.load(call).peers.get(destination)
    title = peer.title if peer is not None else destination
    if not 0 < len(title) <= 16:
        raise BadQuery(f"{destination!r} is no AE title, nor a peer that has one")
    wanted = _resolve(caller, keys)
    begin = time.monotonic()
    progress = common.Progress("move", quiet=as_json)
    total = [0, 0, 0]  # sent, warned, failed
    reason = ""
    interrupted = False
    if wanted:
        mover = Mover(caller)
        try:
            for number, one in enumerate(wanted):
                show = _Shown(progress, begin, number, len(wanted), total[0])
                done = mover.move(one, title, show.update)
                total[0] += done.progress.completed + done.progress.warned
                total[1] += done.progress.warned
                total[2] += done.progress.failed
                for uid in done.failed_uids:
                    _say(progress, uid, done.words, as_json)
                if done.words and not done.failed_uids:
                    _say(progress, one.name, done.words, as_json)
                    total[2] += not done.progress.failed and not done.progress.warned
        except KeyboardInterrupt:
            interrupted = True
            mover.stop()
        except BadQuery:
            raise
        except HilumError as failure:
            reason = str(failure)
        finally:
            progress.close()
            mover.release()
    seconds_all = time.monotonic() - begin
    if as_json:
        found = {"sent": total[0], "warned": total[1], "failed": total[2], "requests": len(wanted)}
        common.print_json(found | {"seconds": round(seconds_all, 3)} | ({"reason": reason} if reason else {}))
    else:
        click.echo(
            f"{total[0]:,} sent to {title} in {seconds_all:.1f} s; "
            f"{total[1]:,} of them with a warning, {total[2]:,} failed"
        )
        if reason:
            click.echo(f"hilum: {reason}", err=True)
        if not wanted:
            click.echo("nothing matches", err=True)
    if interrupted:
        click.echo("interrupted", err=True)
        return common.INTERRUPTED
    return common.FAILED if reason or total[2] else 0


class _Shown(NamedTuple):
    """How far a request has come, of those that there are."""

    bar: common.Progress
    begin: float
    number: int  # of those before
    of: int
    sent: int  # by those before

    def update(self, found: Progress) -> None:
        sent = self.sent + found.completed + found.warned
        done = found.completed + found.warned + found.failed
        left = f", {found.remaining:,} left" if found.remaining is not None else ""
        part = done / (done + (found.remaining or 0)) if done else 0.0
        rate = sent / (time.monotonic() - self.begin)
        text = f"{self.number + 1:,} of {self.of:,} requests, {sent:,} instances{left}, {rate:,.0f}/s"
        self.bar.update(self.number + part, self.of, text)


def _say(progress: common.Progress, name: str, words: str, as_json: bool) -> None:
    if as_json:
        common.print_json({"failed": name, "reason": words})
    else:
        progress.say(f"{name}: failed: {words}")


def _resolve(caller: Caller, pairs: Sequence[tuple[str, str]]) -> list[Wanted]:
    """The requests for what keys ask for; where they are no unique keys the peer is asked first."""
    from hilum.dicom.json import text_of
    from hilum.dimse.asking import Finder
    from hilum.dimse.fetching import Wanted, parted
    from hilum.engine.record import INSTANCE, SERIES, STUDY
    from hilum.transfer import hierarchy

    keys = hierarchy.parse_pairs(pairs)
    if not any(text.strip("* ") for _, text in keys):
        raise BadQuery("say what to move: KEY=VALUE")
    given = hierarchy.unique_values(keys)
    if given is not None:
        level = max(given)
        return [Wanted(level, {**given, level: some}) for some in parted(given[level])]
    level = max(STUDY, hierarchy.deepest(keys))
    groups: dict[tuple[str, ...], list[str]] = {}
    names = {STUDY: "0020000D", SERIES: "0020000E", INSTANCE: "00080018"}
    above = [at for at in (STUDY, SERIES) if at < level]
    with Finder(caller) as finder:
        include = [(int(names[at], 16),) for at in (*above, level)]
        for row in hierarchy.rows(finder, hierarchy.Question(level, keys, include)):
            group = tuple(text_of(row.get(names[at])) for at in above)
            groups.setdefault(group, []).append(text_of(row.get(names[level])))
    return [
        Wanted(level, {**{at: [uid] for at, uid in zip(above, group, strict=True)}, level: some})
        for group, found in groups.items()
        # A study at a time, so that what fails of one is told of it.
        for some in ([[uid] for uid in found] if level == STUDY else parted(found))
    ]

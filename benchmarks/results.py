"""Takes what rows of run.py found; keeps it in RESULTS.json, writes RESULTS.md out of that. Measures nothing.

A row that is run again takes its older self's place, so RESULTS.md stays whole when one row is run alone.
"""

from __future__ import annotations

import datetime
import json
import os
from typing import Any, NamedTuple

FOLDER = os.path.dirname(os.path.abspath(__file__))
JSON_PATH = os.path.join(FOLDER, "RESULTS.json")
PAGE_PATH = os.path.join(FOLDER, "RESULTS.md")

_HEAD = """# Results

Written by `python benchmarks/run.py`, which `make bench` calls; a row alone: `python benchmarks/run.py NAME`.
The source of this page is RESULTS.json.

What counts is the ratio to the yardstick that ran beside it in the same run, in turns: A B A B. The absolute
figures are those of this machine at that hour. A ratio is the median over the pairs of neighbours. Warm means
that the files read lie in the page cache. "Memory" is RssAnon + RssShmem over all processes of a command,
looked at every 20 ms. Pixels are noise of their own for each file.
"""


class Check(NamedTuple):
    """One required figure."""

    what: str
    measured: float
    bound: float
    unit: str
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def words(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {number(self.bound)} {self.unit}"

    def verdict(self) -> str:
        if self.reached:
            return "reached"
        off = abs(self.measured / self.bound - 1)
        return f"**missed by {off:.0%}**"


class Outcome(NamedTuple):
    """What one row found."""

    work: str
    facts: list[tuple[str, str]]  # how it was measured
    columns: list[str]
    lines: list[list[str]]
    checks: list[Check]
    memory: int = 0  # bytes, the most that any import of this row had; 0 where there was none


def number(value: float) -> str:
    """Four digits at most, thousands apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 10 else f"{value:.3g}"


def load() -> dict[str, Any]:
    """All rows that were ever run: name → what keep() kept."""
    try:
        with open(JSON_PATH, encoding="utf-8") as file:
            rows: dict[str, Any] = json.load(file)
            return rows
    except FileNotFoundError:
        return {}


def keep(name: str, outcome: Outcome, machine: dict[str, str], seconds: float, before: float) -> None:
    """Put a row into RESULTS.json, in place of its older self; `before` is the load average when it began."""
    rows = load()
    rows[name] = {
        **outcome._asdict(),
        "checks": [check._asdict() for check in outcome.checks],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(seconds),
        "load": round(before, 1),
        "machine": machine,
    }
    with open(JSON_PATH, "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1, ensure_ascii=False)
        file.write("\n")


def write_page(names: list[str], reasons: dict[str, str]) -> None:
    """Write RESULTS.md: rows in the order of `names`; `reasons` says why a figure is not reached."""
    rows = load()
    present = [name for name in names if name in rows]
    machines = [rows[name]["machine"] for name in present]
    common = max(machines, key=machines.count, default={})
    lines = [_HEAD]
    lines += [f"- {key}: {value}" for key, value in common.items()]
    lines += ["", "| row | required | measured | | why |", "|---|---|---|---|---|"]
    for name in present:
        for check in map(_check, rows[name]["checks"]):
            cells = [
                f"[{name}](#{name}): {check.what}",
                check.words(),
                f"{number(check.measured)} {check.unit}",
                check.verdict(),
                "" if check.reached else reasons.get(f"{name}: {check.what}", reasons.get(name, "")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    missing = [name for name in names if name not in rows]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    for name in present:
        lines += ["", f"## {name}", "", *section(name, rows[name])]
        differing = {k: v for k, v in rows[name]["machine"].items() if common.get(k) != v}
        if differing:
            lines += ["", "Otherwise than above: " + "; ".join(f"{k}: {v}" for k, v in differing.items())]
    with open(PAGE_PATH, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def section(name: str, row: dict[str, Any]) -> list[str]:
    """One row in full, as lines of Markdown."""
    lines = [row["work"], ""]
    lines += [f"- {key}: {value}" for key, value in row["facts"]]
    if "date" in row:
        lines.append(
            f"- run: {row['date']}, {row['seconds']} s, load average {row['load']} before it; "
            f"`python benchmarks/run.py {name}`"
        )
    if row["lines"]:
        lines += ["", "| " + " | ".join(row["columns"]) + " |", "|" + "---|" * len(row["columns"])]
        lines += ["| " + " | ".join(line) + " |" for line in row["lines"]]
    return lines


def _check(row: dict[str, Any]) -> Check:
    return Check(**row)

"""What the rows of run.py share: where and how large, commands, and lines of tables. Measures nothing."""

from __future__ import annotations

import os
import shutil
import sys
from typing import NamedTuple

import measure
from measure import Times

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON = sys.executable
MB = 1_000_000


class Bench(NamedTuple):
    """Where and how large."""

    ram: str  # "" where there is no RAM file system
    disk: str
    quick: bool
    cold: bool
    divisor: int = 10  # of sizes, when it is to be quick

    def size(self, full: int, least: int = 1) -> int:
        return max(least, full // self.divisor) if self.quick else full


def hilum_command(*arguments: str) -> list[str]:
    return [PYTHON, "-m", "hilum", *arguments]


def room(parent: str, name: str) -> str:
    """An empty folder; what an earlier row left under this name is gone."""
    path = os.path.join(parent, name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path


def milli(name: str, found: Times, rows: int) -> list[str]:
    return [name, f"{rows:,}", *(f"{value * 1e3:.3f}" for value in (found.p50, found.p99, found.max))]


def memory_words(peak: measure.Memory) -> str:
    words = f"{mb(peak.total)} at most: {mb(peak.anonymous)} anonymous, {mb(peak.shared)} shared"
    if peak.mapped:
        words += (
            f", of which {mb(peak.mapped)} don't count: mapped pages of the index, which here lies in RAM"
        )
    return words


def mb(count: float) -> str:
    return f"{count / MB:,.0f} MB"

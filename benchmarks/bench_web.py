"""Do the rows of DICOMweb in run.py run, and does what they assert hold? In small, and without Orthanc.

pytest benchmarks/bench_web.py
"""

import pytest
import rows_web
import yardsticks
from rows import Bench


@pytest.mark.parametrize("name", rows_web.ROWS)
def test_a_row(name, tmp_path, monkeypatch):
    monkeypatch.setattr(yardsticks, "dicomweb_plugin", lambda: None)
    outcome = rows_web.ROWS[name](Bench("", str(tmp_path), quick=True, cold=False, divisor=500))
    assert outcome.lines
    assert all(len(line) == len(outcome.columns) for line in outcome.lines)
    assert all(check.measured > 0 for check in outcome.checks)

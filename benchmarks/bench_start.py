"""How long does a user wait before anything happens? Whole processes, warm, modules compiled.

    pytest benchmarks/bench_start.py --benchmark-enable

The yardstick is a Python that does nothing.
"""

import sys

import measure
import pytest


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["-c", "import hilum; print(hilum.__version__)"], "."),
        (["-m", "hilum", "--help"], "rebuild"),
        (["-c", "print('.')"], "."),
    ],
    ids=["import", "help", "python"],
)
def test_start(benchmark, command, said):
    run = benchmark.pedantic(
        measure.run_command, args=([sys.executable, *command],), rounds=5, warmup_rounds=1
    )
    assert said in run.output

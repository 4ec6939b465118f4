#!/bin/sh
# Fuzz the parser in a build with AddressSanitizer and UBSan: tests/fuzz/run.sh [SECONDS [SEED]]
#
# The build lies in build/fuzz, away from the one in use. An input that breaks something stays there, and its
# name is printed.
set -eu
cd "$(dirname "$0")/../.."
python=.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
exec "$python" tests/fuzz/sanitized.py --seconds "${1:-60}" ${2:+--seed "$2"}

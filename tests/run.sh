#!/bin/sh
# All tests; sets up what it needs.   sh tests/run.sh [pytest flags]
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/setup.sh"
if ! python3 -c 'import pytest' 2>/dev/null; then python3 -m pip install -q pytest; fi
exec python3 -m pytest -q --durations=8 -p no:cacheprovider "$root/tests" "$@"

#!/bin/sh
# All tests in two processes; sets up what it needs.   sh tests/run.sh [pytest flags]      (-n 0: in one process)
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/setup.sh"
if ! python3 -c 'import hypothesis, pytest, xdist' 2>/dev/null; then python3 -m pip install -q -r "$root/tests/requirements.txt"; fi
exec python3 -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -p no:cacheprovider "$root/tests" "$@"

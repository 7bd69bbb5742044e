#!/bin/sh
# All tests in two processes; sets up what it needs.   sh tests/run.sh [files] [pytest flags]      (-n 0: in one)
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tests/setup.sh"
case " $* " in *.py*) ;; *) set -- "$root/tests" "$@" ;; esac      # files that are named stand for all
exec $python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -p no:cacheprovider "$@"

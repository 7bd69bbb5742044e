#!/bin/sh
# Kill runs and compare what they leave with what undisturbed runs write; sets up what it needs.
#   sh stress/torture.sh [stage ...] [--kills 100]    kill -9 at random instants in all stages, or in some
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tests/setup.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec $python -m stress.torture "$@"

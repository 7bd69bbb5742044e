#!/bin/sh
# Everything that waits for a GPU, in at most six minutes on one card; sets up what it needs.
#   sh bench/gpu.sh [OUT]      results.jsonl, summary.txt and the logs of the parts go to the folder OUT
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tests/setup.sh"
exec $python -m bench.gpu "$@"

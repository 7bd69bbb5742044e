#!/bin/sh
# The rows of the tables as jobs (queue.json), side by side; stopped in any way, the same command goes on.
#   sh results/queue.sh [--minutes N] [--jobs K] [--only PATTERN]      (--dry-run: order, hours, bytes; --pack FOLDER)
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/setup.sh"
exec $python -m report.queue "$@"

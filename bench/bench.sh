#!/bin/sh
# How fast every stage is beside the plain formulation; sets up what it needs.
#   sh bench/bench.sh [recover|options|relabel|validate ...] [--quick] [--flag value ...]    (no section: all)
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tests/setup.sh"
exec $python -m bench.bench "$@"

#!/bin/sh
# Images by protocols, and students of other networks.
set -e
cd "$(dirname "$0")/../.."
sh results/protocols.sh

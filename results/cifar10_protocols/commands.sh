#!/bin/sh
# Images by protocols, as far as they have been run.
set -e
cd "$(dirname "$0")/../.."
sh results/protocols.sh images released rded edc

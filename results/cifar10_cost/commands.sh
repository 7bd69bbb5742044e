#!/bin/sh
# What steps of recover buy.
set -e
cd "$(dirname "$0")/../.."
sh results/cost.sh

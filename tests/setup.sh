# Sourced by bench.sh, damage.sh and torture.sh with $root set: a python3 with the packages, and pytest, which their modules import.
. "$root/sre2l/run/setup.sh"
if ! python3 -c 'import pytest' 2>/dev/null; then python3 -m pip install -q pytest; fi

# Sourced by run.sh and the scripts of bench/ and stress/ with $root set: a python3 with what tests import.
. "$root/sre2l/run/setup.sh"
if ! python3 -c 'import hypothesis, pytest, xdist' 2>/dev/null; then
    python3 -m pip install -q -r "$root/tests/requirements.txt"
fi

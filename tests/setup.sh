# Sourced by run.sh and the scripts of bench/ and stress/ with $root set: a Python with what tests import.
. "$root/sre2l/run/setup.sh"
if ! $python -c 'import hypothesis, pytest, xdist' 2>/dev/null; then
    $python -m pip install -q -r "$root/tests/requirements.txt"
fi

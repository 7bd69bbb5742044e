# Sourced by run.sh and tests/setup.sh with $root set: makes a .venv from requirements.txt, unless a Python on
# the path has the packages.
has_all() { "$1" "$root/sre2l/run/preflight.py" >/dev/null 2>&1; }
if ! has_all python3 && ! has_all python && ! has_all "$root/.venv/bin/python3"; then
    base=
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            base=$candidate
            break
        fi
    done
    if [ -z "$base" ]; then
        echo "error: Python 3.11 or newer is needed, and none is on the PATH" >&2
        exit 2
    fi
    echo "setting up $root/.venv from requirements.txt (torch takes about 5 GB and a few minutes)"
    if ! "$base" -m venv "$root/.venv"; then
        echo "error: $base has no working venv module;" \
            "on Debian or Ubuntu install the package python3-venv" >&2
        exit 2
    fi
    "$root/.venv/bin/python3" -m pip install -q -r "$root/requirements.txt"
fi
. "$root/sre2l/run/env.sh"

# Sourced by the launchers with $root set: our modules on the path, and the python3 that has the packages (this one, or .venv's).
export PYTHONPATH="$root" PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1  # into a file or a pipe each line goes when it is said
if ! why=$(python3 "$root/sre2l/run/preflight.py" 2>&1); then
    if [ ! -x "$root/.venv/bin/python3" ] || ! why=$("$root/.venv/bin/python3" "$root/sre2l/run/preflight.py" 2>&1); then
        echo "error: $why; install it with 'python3 -m pip install -r requirements.txt', or run 'sh demo.sh', which sets up a .venv" >&2
        exit 2
    fi
    PATH="$root/.venv/bin:$PATH"
fi
no_settings() {  # for a data set without a block in the launcher
    echo "error: $(basename "$0") has no settings for '$dataset'; is that a data set? If so, add a block for it there" >&2
    exit 2
}
# Waiting threads sleep instead of spinning: on two busy cores a training step took 8 ms an image with it and 67 ms without.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
# GPUS=4: four processes on this machine, by torchrun; TORCHRUN="...": its flags for several machines. One process is plain python3.
case ${GPUS:=1} in
    *[!0-9]* | 0*) echo "error: GPUS=$GPUS: how many processes? A whole number, 1 or more" >&2; exit 2 ;;
esac
run="python3 -m"
if [ "$GPUS" -gt 1 ] || [ -n "${TORCHRUN:-}" ]; then run="python3 -m sre2l.run.launch --nproc_per_node=$GPUS ${TORCHRUN:---standalone} -m"; fi

# Sourced by the launchers with $root set: our modules on the path, and a python3 that has the packages.
export PYTHONPATH="$root" PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1  # into a file or a pipe each line goes when it is said
missing_in() { "$1" "$root/sre2l/run/preflight.py" 2>&1; }
if ! why=$(missing_in python3); then
    if [ ! -x "$root/.venv/bin/python3" ] || ! why=$(missing_in "$root/.venv/bin/python3"); then
        echo "error: $why; install it with 'python3 -m pip install -r requirements.txt'," \
            "or run 'sh demo.sh', which sets up a .venv" >&2
        exit 2
    fi
    PATH="$root/.venv/bin:$PATH"
fi
no_settings() {  # for a data set without a block in the launcher
    echo "error: $(basename "$0") has no settings for '$dataset'; is that a data set?" \
        "If so, add a block for it there" >&2
    exit 2
}
# Waiting threads sleep instead of spinning: on two busy cores a training step took 8 ms an image, not 67.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
# One process is plain python3, so that its exit code and Ctrl-C reach the user.
# GPUS=4: torchrun starts four processes on this machine. TORCHRUN="...": its flags for several machines.
case ${GPUS:=1} in
    *[!0-9]* | 0*) echo "error: GPUS=$GPUS: how many processes? A whole number, 1 or more" >&2; exit 2 ;;
esac
run="python3 -m"
if [ "$GPUS" -gt 1 ] || [ -n "${TORCHRUN:-}" ]; then
    run="python3 -m torch.distributed.run --nproc_per_node=$GPUS ${TORCHRUN:---standalone} -m"
    if [ -z "${OMP_NUM_THREADS:-}" ]; then  # each process its part of the cores; torchrun would give it one
        cores=$(python3 -c 'from sre2l.run.limits import usable_cores; print(usable_cores())')
        export OMP_NUM_THREADS=$((cores > GPUS ? cores / GPUS : 1))
    fi
fi

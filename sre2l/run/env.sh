# Sourced by the launchers with $root set: our modules on the path, and a Python, $python, that has the packages.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1  # ours first, the user's own behind it
export PYTHONUNBUFFERED=1  # into a file or a pipe each line goes when it is said
missing_in() { "$1" "$root/sre2l/run/preflight.py" 2>&1; }
python= why=
for candidate in python3 python "$root/.venv/bin/python3"; do  # some installations know no python3
    command -v "$candidate" >/dev/null || continue
    if why=$(missing_in "$candidate"); then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo "error: ${why:-there is no Python on the PATH}; install what is needed with" \
        "'python3 -m pip install -r requirements.txt', or run 'sh demo.sh', which sets up a .venv" >&2
    exit 2
fi
case $python in */*) PATH="$root/.venv/bin:$PATH"; python=python3 ;; esac
no_recipe() {  # this launcher has no block for this recipe
    blocks=$(sed -n 's/^ *\([a-z0-9*][^ ()]*+[^()]*\)).*/\1/p' "$0" | tr -d ' ' | tr '|' '\n' | grep -v '^\*+\*$')
    known=$(echo "$blocks" | sed "s/^\*+/${dataset%%+*}+/" | grep "^${dataset%%+*}+" | sort -u | tr '\n' ' ')
    known=${known:-none (docs/methods.md has the flags, for a data set of your own as well)}
    echo "error: $(basename "$0") has no settings for '$dataset'; of this data set it has: $known" >&2
    exit 2
}
find_scale() {  # of a data set of one's own, by its number of training images -> $scale: small, medium, large
    scale=$($python -m sre2l.data.scale --launcher "$(basename "$0")" --dataset "$dataset" "$@") || exit 2
}
# Waiting threads sleep instead of spinning: on two busy cores a training step took 8 ms an image, not 67.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
# One process is plain Python, so that its exit code and Ctrl-C reach the user.
# GPUS=4: torchrun starts four processes on this machine. TORCHRUN="...": its flags for several machines.
case ${GPUS:=1} in
    *[!0-9]* | 0*) echo "error: GPUS=$GPUS: how many processes? A whole number, 1 or more" >&2; exit 2 ;;
esac
run="$python -m"
if [ "$GPUS" -gt 1 ] || [ -n "${TORCHRUN:-}" ]; then
    run="$python -m torch.distributed.run --nproc_per_node=$GPUS ${TORCHRUN:---standalone} -m"
    if [ -z "${OMP_NUM_THREADS:-}" ]; then  # each process its part of the cores; torchrun would give it one
        cores=$($python -c 'from sre2l.run.limits import usable_cores; print(usable_cores())')
        export OMP_NUM_THREADS=$((cores > GPUS ? cores / GPUS : 1))
    fi
fi

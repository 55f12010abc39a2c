# The body of every job script here, which sets CONFIG and sources it. Outside a job it submits the
# script instead.
#
#   GAM_ARGS="--set train.lr=1e-4" sbatch slurm/gam_1b.sh      from the repository's root
#   slurm/gam_1b.sh --nodes=4                                  the same, with site.sh's settings
#
# GAM_ARGS: --set KEY=VALUE and --fresh for tools/pretrain.py, split at spaces and line breaks.
#
# gam_scale/launch/requeue.py decides whether a job starts again once its training has ended.
set -uo pipefail

STOPPED=75 # tools/pretrain.py's status after a signal
MENDABLE=2 # its status after a user's mistake
UNOPENED=3 # starts in a row that may end before the run directory is opened

fail() {
    echo "error: $*" >&2
    exit $MENDABLE
}

# slurmd gives a job's script this name. SLURM_JOB_ID is set in a terminal of salloc's as well.
if [ "${0##*/}" != slurm_script ]; then
    cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
    . slurm/site.sh
    command -v sbatch >/dev/null || fail "no sbatch here; expected a cluster's login node, or tools/launch.py elsewhere"
    exec sbatch "$@" "slurm/$(basename "$0")"
fi

# srun gives each rank its place; no variable from the shell that called sbatch may do so.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE LOCAL_SIZE TORCHELASTIC_USE_AGENT_STORE \
    TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT TORCHELASTIC_ERROR_FILE

cd "${GAM_ROOT:-$SLURM_SUBMIT_DIR}" || exit
[ -f slurm/site.sh ] || fail "$PWD is not the repository's root; expected sbatch to be called there, or GAM_ROOT to name it"
. slurm/site.sh
set +u # conda's scripts, for one, use variables that are not set
eval "$GAM_MODULES"
set -u
words() { read -rd '' -a "$1" <<<"$2" || :; } # NAME TEXT: split TEXT into the array NAME
words arguments "${GAM_ARGS:-}"
words container "$GAM_CONTAINER"
words srun_options "$GAM_SRUN"
export GAM_SCRATCH=${GAM_SCRATCH:-${TMPDIR:-/tmp}}
arguments=(--config "$CONFIG" "${arguments[@]}")
# A job that was requeued on fewer nodes still has the old count of tasks in SLURM_NTASKS.
[ -n "${SLURM_NTASKS_PER_NODE:-}" ] &&
    srun_options=(--ntasks=$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE)) "${srun_options[@]}")
# srun does not inherit --cpus-per-task from sbatch; without this every rank has one core.
export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-1}}
python=("${container[@]}" "$GAM_PYTHON")

# --- the run directory, with the code and the settings of this job
run=$("${python[@]}" -m gam_scale.launch.script_arguments "${arguments[@]}") || exit $MENDABLE
case $run in /*) ;; *) run=$PWD/$run ;; esac
job=$run/jobs/$SLURM_JOB_ID
code=$job/code
if [ ! -d "$code" ]; then # a requeued job goes on with the code that it began with
    mkdir -p "$code.partial" || fail "$job cannot be written"
    cp -r -- gam_scale tools slurm "$CONFIG" "$code.partial"
    git rev-parse HEAD >"$job/commit" 2>/dev/null
    git diff HEAD >"$job/uncommitted.diff" 2>/dev/null
    printf '%s\n' "${arguments[*]}" >"$job/arguments"
    mv "$code.partial" "$code"
fi
arguments+=(--config "$code/$(basename -- "$CONFIG")") # the later --config counts

# --- where ranks meet: on the first node, at a port that they take themselves (parallel/meeting.py)
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
unset MASTER_PORT
export MASTER_ADDR PYTHONPATH="$code${PYTHONPATH:+:$PYTHONPATH}"

# --- settings as in parallel/flight.py: a hang leaves the last collectives of each rank in
# $job/flight_rank_N, and GPU memory grows in place, without gaps
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}
export TORCH_FR_DUMP_TEMP_FILE=${TORCH_FR_DUMP_TEMP_FILE:-$job/flight_rank_}
export TORCH_NCCL_DUMP_ON_TIMEOUT=${TORCH_NCCL_DUMP_ON_TIMEOUT:-1}
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}}

clean_shm() {
    [ "$GAM_CLEAN_SHM" = 1 ] || return 0
    srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --overlap \
        find /dev/shm -maxdepth 1 -user "$(id -un)" \
        \( -name 'torch_*' -o -name 'nccl-*' -o -name '00*_*' \) -delete
}

# restarts.json changes at every start that gets as far as to open the run directory.
opened() { cksum "$run/restarts.json" 2>/dev/null; }

# --- train. Signals reach every rank from Slurm; those meant for this shell (--signal=B:...) are
# passed on. A shell handles a signal only between commands, hence `&` and `wait`.
echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), $SLURM_JOB_NUM_NODES node(s) from $MASTER_ADDR, $SRUN_CPUS_PER_TASK core(s) a rank, logs in $job"
clean_shm
before=$(opened)
# When a rank fails, the others name it before they end: hence no --kill-on-bad-exit, which would
# also hide the failed rank's status.
srun --kill-on-bad-exit=0 --wait=180 --label --output="$job/rank%t.log" --open-mode=append \
    "${srun_options[@]}" "${python[@]}" -u "$code/tools/pretrain.py" --stopped-status $STOPPED \
    "${arguments[@]}" &
srun=$!
trap 'kill -USR1 $srun' USR1 USR2
trap : TERM # the ranks get TERM too, and this shell waits for them
while
    wait $srun
    status=$?
    kill -0 $srun 2>/dev/null
do :; done
clean_shm
case $(opened),$status in
"$before",$STOPPED) ;;
"$before",*) echo "$status" >>"$job/unopened" ;;
*) rm -f "$job/unopened" ;;
esac
unopened=$(cat "$job/unopened" 2>/dev/null | wc -l) # starts in a row

# --- does the job start again? The code that it began with decides (-P: not this folder's); if that
# code is too old to have the module, this folder's does. If Python cannot start any more, on a node
# that fails, this shell decides.
decide() { "${python[@]}" "$@" -m gam_scale.launch.requeue "$status" "$unopened"; }
if next=$(decide -P 2>/dev/null || decide); then
    eval "$next"
else
    echo "error: training ended with status $status, and Python cannot start to say what follows" >&2
    task=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    task=${task:-$SLURM_JOB_ID}
    if [ "$status" != 0 ] && [ "$status" != $MENDABLE ] && [ "$unopened" -lt $UNOPENED ] &&
        [ "$(squeue -h -j "$task" -o %T 2>/dev/null)" = RUNNING ]; then
        scontrol requeue incomplete "$task"
    fi
fi
[ "$status" != $MENDABLE ] || grep -hm 3 'error:' "$job"/rank*.log | tail -n 3 >&2
exit "$status"

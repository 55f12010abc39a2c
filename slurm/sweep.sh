#!/usr/bin/env bash
# One run per line of SWEEP (a file of --set options), each on one GPU: sbatch --array=1-N.
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --array=1-4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
# 300 s before the end: Slurm may send the signal a minute early or late, and saving takes time.
#SBATCH --signal=USR1@300

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    options=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "${SWEEP:?is not set; expected a file of options, one run per line}")
    [ -n "$options" ] || { echo "error: $SWEEP has no line $SLURM_ARRAY_TASK_ID" >&2; exit 2; }
    name=runs/sweep-$SLURM_ARRAY_JOB_ID/$SLURM_ARRAY_TASK_ID
    GAM_ARGS="${GAM_ARGS:-} --set log.run_dir=$name $options"
fi
CONFIG=${CONFIG:-configs/quickstart.json}
here=$(dirname "$0")/..
[ "${0##*/}" != slurm_script ] || here=${GAM_ROOT:-$SLURM_SUBMIT_DIR} # a job has a copy of this file
. "$here/slurm/common.sh"

#!/usr/bin/env bash
# A 1B-parameter GAM on 8 nodes of 8 GPUs: see common.sh and site.sh.
#SBATCH --job-name=gam_1b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
# 300 s before the end: Slurm may send the signal a minute early or late, and saving takes time.
#SBATCH --signal=USR1@300

CONFIG=${CONFIG:-configs/gam_1b.json}
here=$(dirname "$0")/..
[ "${0##*/}" != slurm_script ] || here=${GAM_ROOT:-$SLURM_SUBMIT_DIR} # a job has a copy of this file
. "$here/slurm/common.sh"

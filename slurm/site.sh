# Settings that differ between clusters. A variable that is set in the environment takes precedence
# over its value here; the job scripts need no edits.

# sbatch reads these itself (SBATCH_* in its manual; a command-line option wins over them).
# export SBATCH_ACCOUNT=${SBATCH_ACCOUNT:-my_account}
# export SBATCH_PARTITION=${SBATCH_PARTITION:-gpu}
export SBATCH_TIMELIMIT=${SBATCH_TIMELIMIT:-24:00:00}
# export SBATCH_QOS=${SBATCH_QOS:-normal}

# Shell commands that the batch shell runs before training, such as `module load cuda/12.8`.
export GAM_MODULES=${GAM_MODULES:-}
# The Python of the tasks: that of the repository's .venv, unless a container has its own.
export GAM_PYTHON=${GAM_PYTHON:-.venv/bin/python}
# The command in front of it, such as `apptainer exec --nv /images/gam.sif`.
export GAM_CONTAINER=${GAM_CONTAINER:-}
# More options of srun, such as `--container-image=...` (pyxis) or `--gpu-bind=none`. With pyxis,
# GAM_PYTHON is started on the host as well, before srun and after it.
export GAM_SRUN=${GAM_SRUN:-}
# A folder local to each node, for the cache of remote data sets; empty: the job's TMPDIR, or /tmp.
export GAM_SCRATCH=${GAM_SCRATCH:-}
# 1: before and after training, remove what killed ranks of this user left in /dev/shm. Only for
# jobs that have their nodes to themselves: nothing tells which job a file is from.
export GAM_CLEAN_SHM=${GAM_CLEAN_SHM:-0}

# The network between nodes; if these are not set, the libraries choose it.
# export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-ib0}
# export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-ib0}

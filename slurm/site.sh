# What differs from one cluster to the next. Every variable here may as well be set in the
# environment, which wins; nothing in the job scripts needs to be edited.

# sbatch reads these itself (SBATCH_* in its manual; a command-line option wins over them).
# export SBATCH_ACCOUNT=${SBATCH_ACCOUNT:-my_account}
# export SBATCH_PARTITION=${SBATCH_PARTITION:-gpu}
export SBATCH_TIMELIMIT=${SBATCH_TIMELIMIT:-24:00:00}
# export SBATCH_QOS=${SBATCH_QOS:-normal}

# Shell words run on each node's batch shell before training, such as `module load cuda/12.8`.
export GAM_MODULES=${GAM_MODULES:-}
# The Python of the tasks; the repository's own environment unless there is a container.
export GAM_PYTHON=${GAM_PYTHON:-.venv/bin/python}
# Words before it, such as `apptainer exec --nv /images/gam.sif`.
export GAM_CONTAINER=${GAM_CONTAINER:-}
# More options of srun, such as `--container-image=...` (pyxis) or `--gpu-bind=none`.
export GAM_SRUN=${GAM_SRUN:-}
# A folder local to each node, for the cache of remote data sets.
export GAM_SCRATCH=${GAM_SCRATCH:-${TMPDIR:-/tmp}}
# 1: remove this user's leftovers of killed ranks from /dev/shm before and after. Only where a job
# has its nodes to itself: Slurm cannot tell whose they are.
export GAM_CLEAN_SHM=${GAM_CLEAN_SHM:-0}

# The network between nodes: the libraries' own choice unless the site knows better.
# export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-ib0}
# export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-ib0}

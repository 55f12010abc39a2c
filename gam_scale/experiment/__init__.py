"""Experiments: grids of runs, what each costs, their training here or on Slurm, their results."""

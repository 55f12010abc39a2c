"""Experiments: grids of runs, their cost, their training here or on Slurm, and their results."""

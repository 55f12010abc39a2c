"""Preparing a set by many processes, on Slurm or here: the same bytes as by one."""

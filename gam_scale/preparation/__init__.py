"""Prepare a set by many processes, on Slurm or on this machine, with the same bytes as by one."""

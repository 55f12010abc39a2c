"""Training: the loop and what it logs."""

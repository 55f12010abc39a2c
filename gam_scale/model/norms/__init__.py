"""Norms, one kind a file."""

"""Synthetic tasks, one kind per file, that test on texts of bare ids what a model remembers."""

"""Synthetic tasks, one kind a file: what a model keeps of a text, asked without any words."""

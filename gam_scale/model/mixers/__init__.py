"""Mixers, one kind a file: what a layer does across tokens."""

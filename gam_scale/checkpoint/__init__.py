"""Checkpoints: one engine-neutral format, written atomically, read without unpickling."""

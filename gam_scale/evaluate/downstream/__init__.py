"""Downstream tasks for models that were trained on text: one kind per file, found by name."""

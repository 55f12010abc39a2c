"""The tasks that run beside the training itself, one hook a file; see :class:`Hook` in loop.py."""

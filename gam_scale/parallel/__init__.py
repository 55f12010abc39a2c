"""Ranks and engines: the only package that knows which engine runs the step."""

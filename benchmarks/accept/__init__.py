"""The checks of benchmarks/gpu_accept.py, the process that runs one of them, and the table.

A check is a module with ``PARTS``: functions by name, which take a
:class:`~benchmarks.accept.record.Check` and are called one after another.
:mod:`benchmarks.accept.catalogue` numbers the checks.
"""

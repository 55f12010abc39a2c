"""The checks of benchmarks/gpu_accept.py, the process that runs one of them, and the table.

A check is a module with ``PARTS``: names, and functions of a
:class:`~benchmarks.accept.record.Check` that are called one after another.
:mod:`benchmarks.accept.catalogue` numbers the checks.
"""

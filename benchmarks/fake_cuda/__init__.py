"""Tracing of what a GPU would run, on a machine without a GPU.

A CPU build of torch traces, partitions and schedules for an H100 when it believes that there is
one. :mod:`device` makes it believe so, in a process of its own; tensors are fake, so that nothing
is computed. Dynamo, AOTAutograd, CUDA's autocast rules and inductor's scheduler then take a GPU
run's branches. ``python -m benchmarks.fake_cuda`` remakes the table in docs/gpu.md.
"""

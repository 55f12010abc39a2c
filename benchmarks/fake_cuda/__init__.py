"""What a GPU would run, found out without one.

A CPU build of torch traces, partitions and schedules for an H100 when it believes there is one:
:mod:`device` sees to that, in a process of its own; tensors are fake, so that nothing is computed.
Dynamo, AOTAutograd, CUDA's autocast rules and inductor's scheduler then take the branches that a
run on a GPU takes. ``python -m benchmarks.fake_cuda`` remakes the table in docs/gpu.md.
"""

"""What a machine can do: its processors, memory, peak rates and compilers."""

"""Operators of our own: one opaque node each in a compiled graph, with kernels behind them."""

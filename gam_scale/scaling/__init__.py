"""Scaling laws: how the loss falls with parameters and tokens, and how sure that is."""

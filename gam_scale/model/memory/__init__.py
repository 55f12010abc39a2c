"""Associative memories: what a GAM block's global path reads from."""

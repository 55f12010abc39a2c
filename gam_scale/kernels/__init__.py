"""Custom operators, each an opaque node in a compiled graph with a kernel behind it."""

"""The run directory: who writes it, what it holds, what has become of its run."""

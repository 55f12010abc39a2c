"""Feed-forward networks, one kind per file."""

"""Feed-forward networks, one kind a file."""

"""What a model that was trained on text is asked: tasks by name, one kind a file."""

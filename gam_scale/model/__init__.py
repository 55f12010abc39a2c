"""The language model and its blocks; knows nothing of engines, files or launchers."""

"""The language model and its blocks, independent of engines, files and launchers."""

"""Comparisons of tuned models of equal size, over seeds, on text and on synthetic tasks."""

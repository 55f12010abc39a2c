"""Comparisons of models at equal size, tuned and with seeds, on text and on synthetic tasks."""

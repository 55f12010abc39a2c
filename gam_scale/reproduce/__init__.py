"""Reproduction of the paper's three tables: what is trained and timed, and the page of results."""

"""The paper's three tables, run again: what is trained and timed, and the page that shows it."""

"""Presentation of results of any kind: pages, tables, figures and formatted numbers."""

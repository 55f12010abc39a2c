"""How results are shown: pages, tables, figures and numbers, whatever they are results of."""

"""The memories of gam blocks: the paper's constant bank, and those that the context writes."""

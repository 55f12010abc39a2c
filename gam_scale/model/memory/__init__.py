"""What the memories of gam blocks are made of: interface, decay gates, heads, recurrence."""

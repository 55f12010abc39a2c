"""What a run will need and cost, by arithmetic alone: no rank starts, no data is opened."""

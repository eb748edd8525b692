"""Where a teacher's outputs come from."""

"""Training: one loop, its steps, the record it leaves."""

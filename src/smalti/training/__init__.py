"""Training: one loop for every paradigm."""

"""What adapts, how many inner steps and which step size: measured on a model and its tasks, then ranked."""

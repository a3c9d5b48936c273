"""The quantities of the theory, measured on a real learner and its tasks."""

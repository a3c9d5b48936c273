"""Inner problems, and solvers that adapt w to a support set."""

"""The theory in plain floats: bounds, complexity, what a step of the outer loop is worth."""

"""The paper made runnable: constants, bounds, complexity, a verifier, a planner."""

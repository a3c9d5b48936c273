"""Ways to differentiate through the inner loop."""

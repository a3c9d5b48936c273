"""Ways to draw tasks, each from a seed, a stream and an index."""

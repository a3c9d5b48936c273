"""How a model runs for a partition: what of it runs once, what runs in every inner step, and in which kernels."""

"""The outer loop, its settings, checkpoints and progress."""

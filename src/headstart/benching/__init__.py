"""Steps of meta-training timed side by side: ours, a plain loop over tasks, a supervised step, and other libraries."""

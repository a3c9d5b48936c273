"""The experiments of Ji et al. (2020) by one command, taken further: cells, claims on them, verdicts, and a report."""

"""The theory against problems with known answers."""

"""Files: fetched, unpacked and kept."""

"""Model files that exported folders hold: copied as they are, each is complete in itself."""

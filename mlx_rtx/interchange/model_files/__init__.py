"""Model files that are copied unchanged to exported folders; they do not import this package."""

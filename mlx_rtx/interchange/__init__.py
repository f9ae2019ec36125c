"""Interchange: models as other programs read and write them."""

"""The two models and what they are made of: embedding, layer, recurrence, readout."""

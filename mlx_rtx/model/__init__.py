"""The recurrent and the regular transformer, and their parts: embedding, layer, recurrence, readout."""

"""Generation: decoding token by token, sampling, and states on disk."""

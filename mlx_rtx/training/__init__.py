"""Training: settings, loop, gradient, optimizer, curriculum, evaluation, checkpoints and log."""

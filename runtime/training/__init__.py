"""Training: optimizers, schedules, a training step that is itself a graph, and the loop around it."""

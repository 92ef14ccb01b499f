"""Going down: a training from a problem and an optimiser, and the record of it."""

"""The one training loop: step, state, optimiser, sharding, checkpoints."""

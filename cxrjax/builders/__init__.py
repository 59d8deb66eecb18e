"""Preparation of published data sets for TFDS: archives, releases, Beam; unused in training."""

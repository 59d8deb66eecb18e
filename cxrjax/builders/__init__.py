"""Preparing published data sets for TFDS: archives, releases, Beam. Training never imports it."""

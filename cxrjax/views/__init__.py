"""Augmentation on the accelerator: what a batch of stored radiographs looks like to a method."""

"""Augmentation on the accelerator: turns batches of stored radiographs into views for methods."""

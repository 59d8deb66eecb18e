"""Decoding of image files to gray levels, in isolated worker processes."""

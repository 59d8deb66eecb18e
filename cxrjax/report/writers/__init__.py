"""Where a run's metrics go besides its own files: one writer a file, `base` is their class."""

"""Networks: parameters are plain nested dicts outside this package, NNX modules inside it."""

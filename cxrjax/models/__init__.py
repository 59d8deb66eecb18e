"""Networks: parameters are plain nested dicts outside this room, NNX modules inside it."""

"""The config language: base recipe, presets, options after the colon, objects by dotted name."""

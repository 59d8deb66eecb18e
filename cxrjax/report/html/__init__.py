"""Pages' building blocks: elements, charts, pictures. Knows nothing of runs."""

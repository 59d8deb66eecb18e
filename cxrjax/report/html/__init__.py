"""Building blocks of pages: elements, charts, pictures. Independent of runs."""

"""What is wrong with the data: near-duplicates, inverted images, leakage, and the page about it."""

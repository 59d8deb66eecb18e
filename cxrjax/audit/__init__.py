"""Data audit: near-duplicates, inverted images, leakage, and the page that reports them."""

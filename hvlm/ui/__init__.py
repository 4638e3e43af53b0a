"""A page on which videos are asked about, in a browser."""

"""Whether training would fit: its memory worked out without allocating it."""

"""`tune`: which blocks, rank and learning rate, by many configurations in one pass."""

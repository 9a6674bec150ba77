"""Many Skip configurations trained at once from one Skip-Cache."""

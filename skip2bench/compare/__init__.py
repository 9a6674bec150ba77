"""Whole matrices of runs, each in a process of its own, and what follows from them."""

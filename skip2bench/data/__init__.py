"""Samples from the embedded corpus, files and LitGPT's data modules."""

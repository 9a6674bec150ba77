"""Micro-benchmarks in interleaved rounds, of the step that training takes."""

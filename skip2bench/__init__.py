"""Skip2-LoRA for language models: a reference implementation and an honest measurement of it."""

__version__ = "0.1.0"

"""A fine-tuning run: its plan, its parts, its loop, its state, its logs."""

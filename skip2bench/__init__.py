"""Skip2-LoRA for language models: a reference implementation and an honest measurement of it."""

import time

__version__ = "0.1.0"
STARTED = time.monotonic()
"""When this process began to load the package, which is before all that takes long to load."""

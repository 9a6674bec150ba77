"""Hardware, environment, clock, memory, signals."""

"""Files whole or not at all, locks, text, console, units, shipped resources."""

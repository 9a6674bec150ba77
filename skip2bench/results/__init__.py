"""What runs write and how it is read back: run folders, curves, statistics, comparisons."""

"""The charts as SVG: of runs, of a sweep, and the look of both."""

"""This machine before a run: beside the guide's requirements, and whether the run fits."""

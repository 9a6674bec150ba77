"""The command line: one function a command, flags from the configurations, screens."""

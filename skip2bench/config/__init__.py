"""Options of the commands and where their values come from; the table of methods."""

"""The tables of the terminal, the Markdown and the JSON: rows of figures, columns, cells."""

"""From files of results to the evaluation report: selection, tables, verdicts, charts, words."""

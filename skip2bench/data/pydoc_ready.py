"""Loaded by a process that others are forked from: they have the embedded data without parsing."""

from skip2bench.data.domain import held_out_source
from skip2bench.data.load import pydoc_records

pydoc_records()
held_out_source()

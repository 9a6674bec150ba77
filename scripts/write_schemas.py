"""Write the JSON Schema of every file of results to docs/schemas; --check finds them out of date.

python scripts/write_schemas.py [--check]
"""

import ast
import inspect
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema

from made_files import write_or_check
from skip2bench.compare.engines.job import Call, WorkerState
from skip2bench.export.record import ExportResult
from skip2bench.machine.environment_record import Environment
from skip2bench.results.across import AcrossResults
from skip2bench.results.bench_records import BenchSummary
from skip2bench.results.comparison_records import ComparisonResults, Matching
from skip2bench.results.harness import HarnessResults
from skip2bench.results.registration import Registration
from skip2bench.results.run_records import CompareSummary, TrainSummary
from skip2bench.results.tune_records import TuneResults, TuneSummary

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"
RECORDS: dict[str, type[BaseModel]] = {
    "train_summary": TrainSummary,
    "bench_summary": BenchSummary,
    "compare_summary": CompareSummary,
    "comparison_results": ComparisonResults,
    "across": AcrossResults,
    "lm_eval": HarnessResults,
    "call": Call,
    "worker": WorkerState,
    "matching": Matching,
    "registration": Registration,
    "tune_summary": TuneSummary,
    "tune": TuneResults,
    "environment": Environment,
    "export": ExportResult,
}


class _Schema(GenerateJsonSchema):
    """Without a title for every field, and with the text below it in the source."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: CoreSchema) -> dict[str, Any]:
        content = super().model_schema(schema)
        for record in reversed(schema["cls"].__mro__):
            if record is not BaseModel and issubclass(record, BaseModel):
                for name, text in read_field_texts(record).items():
                    content["properties"][name]["description"] = text
        return content


def read_field_texts(record: type[BaseModel]) -> dict[str, str]:
    """By field, the text below it, of those that have one."""
    body = ast.parse(inspect.getsource(record)).body[0].body
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def render_schemas() -> dict[str, str]:
    """Text of each file, by its name."""
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {
        f"{name}.schema.json": json.dumps(
            draft | record.model_json_schema(schema_generator=_Schema), indent=2, ensure_ascii=False
        )
        + "\n"
        for name, record in RECORDS.items()
    }


def main() -> int:
    """Write the schemas, or compare what is there with what would be written."""
    texts = {FOLDER / name: text for name, text in render_schemas().items()}
    return write_or_check(texts, __doc__.splitlines()[0])


if __name__ == "__main__":
    sys.exit(main())

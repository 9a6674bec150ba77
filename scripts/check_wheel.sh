#!/bin/sh
# Build the wheel, install it into an empty environment, and run it in an empty folder outside the checkout.
#     sh scripts/check_wheel.sh [python]
set -eu
python=${1:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/venv"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work" "$root"
"$work/venv/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" "$work"/skip2bench-*.whl

cd "$work"
venv/bin/python -m pip check
venv/bin/python -c 'import pathlib, skip2bench as s; assert pathlib.Path(s.__file__).with_name("py.typed").is_file()'
venv/bin/skip2bench train --blocks 0,1,2,3 --max-steps 2 --train-samples 32
venv/bin/skip2bench report --output report.md
test -s report.md
test -s figures/losses.ja.svg
venv/bin/skip2bench report --format html --output report.html
test -s report.html
echo "the wheel runs outside the checkout"

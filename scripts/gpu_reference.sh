#!/usr/bin/env bash
# The reference figures of a machine with one CUDA GPU, in one command and without a network:
#
#     scripts/gpu_reference.sh [minutes]              (default 45; results/reference/<gpu name>/)
#     STAGES="2 5" scripts/gpu_reference.sh           some stages alone
#
# Stages, each within 9 minutes: 1 tests marked gpu; 2 micro-benchmark; 3 fine-tuning on real text,
# up to 10 epochs, against one inference pass; 4 the same with an NF4 backbone; 5 doctor and report.
# A stage for which the minutes do not last is left out, and named. A stage that fails does not stop
# the others; the exit status is 1 then.
#
# Weights are random: speed and memory do not depend on them. From the environment, for other models
# and for a trial on a CPU: PYTHON, MODEL, DEVICE, PRECISION, OUT, WORK (room for the weights),
# BLOCKS, BENCH_FLAGS, TRAIN_FLAGS, EPOCHS, NF4_FLAGS, STAGE_SECONDS.
set -u -o pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
MODEL=${MODEL:-Llama-2-7b-hf}
DEVICE=${DEVICE:-cuda}
PRECISION=${PRECISION:-bf16-true}
STAGES=${STAGES:-1 2 3 4 5}
STAGE_SECONDS=${STAGE_SECONDS:-540}
BLOCKS=${BLOCKS:-fast balanced accurate all}
BENCH_FLAGS=${BENCH_FLAGS:---batch-size 4 --seq-length 512 --rounds 3 --iterations 10}
TRAIN_FLAGS=${TRAIN_FLAGS:---train-samples 400 --max-seq-length 512 --global-batch-size 16 --micro-batch-size 4 --lr-warmup-steps 10}
EPOCHS=${EPOCHS:-10}
NF4_FLAGS=${NF4_FLAGS:-}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" COLUMNS=160

name() {
    "$PYTHON" - "$DEVICE" <<'PY'
import re, sys, torch
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("error: torch sees no CUDA device; set DEVICE=cpu and a small MODEL for a trial")
found = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else sys.argv[1]
print(re.sub(r"[^a-z0-9]+", "-", found.lower().replace("nvidia", "")).strip("-"))
PY
}
if [ -z "${OUT:-}" ]; then
    NAME=$(name) || exit 2
    OUT=results/reference/$NAME
fi
WORK=${WORK:-${TMPDIR:-/tmp}/skip2bench-$MODEL}
CHECKPOINT=$WORK/$MODEL
export PYTHON MODEL DEVICE PRECISION OUT WORK BLOCKS BENCH_FLAGS TRAIN_FLAGS EPOCHS NF4_FLAGS
mkdir -p "$OUT" "$WORK"

skip2bench() { "$PYTHON" -m skip2bench "$@"; }

checkpoint() {
    [ -f "$CHECKPOINT/complete" ] && return
    rm -rf "$CHECKPOINT"
    "$PYTHON" scripts/make_random_checkpoint.py "$MODEL" --out-dir "$CHECKPOINT" --device "$DEVICE" &&
        touch "$CHECKPOINT/complete"
}

# train FOLDER METHOD [flags]: a run, of which the adapter is not kept
train() {
    local folder=$1 method=$2
    shift 2
    # shellcheck disable=SC2086
    skip2bench train --checkpoint-dir "$CHECKPOINT" --method "$method" --device "$DEVICE" \
        --precision "$PRECISION" --epochs "$EPOCHS" --eval-interval 1000000 --save-interval 1000000 \
        $TRAIN_FLAGS "$@" --out-dir "$OUT/$folder" --force >/dev/null && rm -rf "$OUT/$folder/final"
}

# sets rank_fast, rank_all, …: those that train as many parameters as LoRA does
find_ranks() {
    local found
    found=$("$PYTHON" scripts/gpu_reference.py ranks "$MODEL") && eval "$found"
}

stage_1() {
    # only their files: the others need what a GPU machine may not have
    # shellcheck disable=SC2046
    "$PYTHON" -m pytest -m gpu -q -rs -p no:cacheprovider $(grep -rl --include="test_*.py" mark.gpu tests) 2>&1 |
        tee "$OUT/tests.txt" | tail -n 15
}

stage_2() {
    # shellcheck disable=SC2086
    skip2bench bench --inference --model "$MODEL" --methods lora,skip,skip2 --device "$DEVICE" \
        --precision "$PRECISION" $(printf -- "--blocks %s " $BLOCKS) $BENCH_FLAGS --out-dir "$OUT/bench" --force
}

stage_3() {
    checkpoint && find_ranks &&
        train train/lora lora &&
        train train/skip2-fast skip2 --blocks fast --skip-r "$rank_fast" &&
        train train/skip2-all skip2 --blocks all --skip-r "$rank_all" &&
        # shellcheck disable=SC2086
        "$PYTHON" scripts/gpu_reference.py inference "$OUT/inference.json" --checkpoint-dir \
            "$CHECKPOINT" --device "$DEVICE" --precision "$PRECISION" $TRAIN_FLAGS
}

stage_4() {
    if ! "$PYTHON" -c "import bitsandbytes" 2>/dev/null; then
        echo "bitsandbytes is not installed: no figures with an NF4 backbone" | tee "$OUT/nf4.txt"
        return
    fi
    # shellcheck disable=SC2086
    checkpoint && find_ranks &&
        train nf4/lora lora --quantize bnb.nf4 $NF4_FLAGS &&
        train nf4/skip2-fast skip2 --quantize bnb.nf4 --blocks fast --skip-r "$rank_fast" $NF4_FLAGS
}

stage_5() {
    skip2bench doctor --model "$MODEL" --device "$DEVICE" --precision "$PRECISION" \
        --json >"$OUT/doctor.json" &&
        "$PYTHON" scripts/gpu_reference.py summary "$OUT" &&
        skip2bench report --results "$OUT" --lang en --output "$OUT/report.en.md" &&
        skip2bench report --results "$OUT" --lang ja --output "$OUT/report.ja.md"
}

if [ "${1:-}" = --stage ]; then
    "stage_$2"
    exit
fi

end=$(($(date +%s) + 60 * ${1:-45}))
failed=""
echo "scripts/gpu_reference.sh ${1:-}, $(date -u +%Y-%m-%dT%H:%MZ)" | tee -a "$OUT/stages.txt"
for number in $STAGES; do
    left=$((end - $(date +%s)))
    if [ "$left" -lt 30 ]; then
        echo "stage $number: left out, no time" | tee -a "$OUT/stages.txt"
        failed="$failed $number"
        continue
    fi
    started=$(date +%s)
    # a process group of its own, which ends as a whole
    timeout --kill-after 20 "$((left < STAGE_SECONDS ? left : STAGE_SECONDS))" \
        bash scripts/gpu_reference.sh --stage "$number"
    case $? in
    0) word=ok ;;
    124 | 137) word="out of time" ;;
    *) word=failed ;;
    esac
    [ "$word" = ok ] || failed="$failed $number"
    echo "stage $number: $word, $(($(date +%s) - started)) s" | tee -a "$OUT/stages.txt"
done
if [ -n "$failed" ]; then
    echo "not done:$failed"
    exit 1
fi
echo "the figures are in $OUT"

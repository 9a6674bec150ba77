"""Make the embedded base model `pystd`: tokenizer, pretraining, checkpoint and model card.

    python scripts/pretrain_pystd.py --out-dir skip2bench/assets/pystd

Data: the standard library's source without docstrings (`skip2bench.data.stdlib`), training modules
only. About 50 minutes on 2 cores. The result depends on the Python version (its library is the
data) and, in the last digits, on the processor.
"""

import argparse
import json
import math
import platform
import time
from pathlib import Path

import torch
import yaml
from litgpt import Config
from litgpt.model import GPT, RMSNorm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from skip2bench.data.stdlib import Module, read_modules, strip_docstrings

EOS = "<|endoftext|>"
VOCAB_SIZE = 2048
CONTEXT = 512
MODEL = {
    "name": "pystd",
    "block_size": CONTEXT,
    "n_layer": 8,
    "n_embd": 192,
    "n_head": 6,
    "vocab_size": VOCAB_SIZE,
    "padded_vocab_size": VOCAB_SIZE,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "intermediate_size": 512,
    "bias": False,
    "parallel_residual": False,
    "rotary_percentage": 1.0,
}


def train_tokenizer(texts: list[str], out_dir: Path) -> Tokenizer:
    """Train a byte-level BPE of 2,048 tokens and write it as LitGPT's `Tokenizer` reads it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(out_dir / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOS,
        "eos_token": EOS,
        "add_bos_token": False,
        "model_max_length": CONTEXT,
    }
    (out_dir / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return tokenizer


def encode(tokenizer: Tokenizer, modules: list[Module]) -> torch.Tensor:
    """Token ids of all modules, each closed by the end-of-text token, `(N,)`."""
    eos = tokenizer.token_to_id(EOS)
    encodings = tokenizer.encode_batch([strip_docstrings(module.source) for module in modules])
    return torch.tensor([token for encoding in encodings for token in [*encoding.ids, eos]])


def cut_windows(tokens: torch.Tensor, offset: int) -> torch.Tensor:
    """Consecutive windows of CONTEXT + 1 tokens that overlap by one, `(W, CONTEXT + 1)`."""
    return tokens[offset:].unfold(0, CONTEXT + 1, CONTEXT)


@torch.no_grad()
def measure_loss(model: torch.nn.Module, tokens: torch.Tensor) -> float:
    """Mean cross-entropy in nats per token over `tokens`, in float32."""
    losses = []
    for batch in cut_windows(tokens, 0).split(16):
        logits = model(batch[:, :-1])
        losses.append(torch.nn.functional.cross_entropy(logits.mT, batch[:, 1:], reduction="none"))
    return torch.cat(losses).mean().item()


def unigram_entropy(tokens: torch.Tensor) -> float:
    """Entropy of the token frequencies, in nats: the best loss of a model that ignores context."""
    p = torch.bincount(tokens, minlength=VOCAB_SIZE).double() / len(tokens)
    return -(p[p > 0] * p[p > 0].log()).sum().item()


def build_optimizers(model: GPT, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embedding, head and norms."""
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
    muon = torch.optim.Muon(
        matrices, lr=learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        rest, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    return [muon, adamw]


def pretrain(
    model: GPT, train: torch.Tensor, val: torch.Tensor, args: argparse.Namespace
) -> list[dict]:
    """Train in place for `args.steps`, autocast to bfloat16 over float32; return the loss curve."""
    forward = torch.compile(model) if args.compile else model
    optimizers = build_optimizers(model, args.learning_rate)
    generator = torch.Generator().manual_seed(args.seed)
    batches: list[torch.Tensor] = []
    curve, running, started = [], [], time.perf_counter()
    for step in range(1, args.steps + 1):
        if not batches:
            windows = cut_windows(train, int(torch.randint(CONTEXT, (1,), generator=generator)))
            order = torch.randperm(len(windows), generator=generator)
            batches = [
                b for b in windows[order].split(args.batch_size) if len(b) == args.batch_size
            ]
        batch = batches.pop()
        # linear warm-up over 5 % of the steps, then linear to zero
        factor = min(step / (0.05 * args.steps), 1.0) * min(
            1.0, (args.steps - step + 1) / (0.6 * args.steps)
        )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * factor
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running.append(loss.item())
        if step % args.eval_interval == 0 or step == args.steps:
            point = {
                "step": step,
                "train_loss": sum(running) / len(running),
                "val_loss": measure_loss(model, val),
            }
            rate = step * batch[:, 1:].numel() / (time.perf_counter() - started)
            print(json.dumps(point | {"tokens_per_second": round(rate)}), flush=True)
            curve.append(point)
            running = []
    return curve


@torch.no_grad()
def normalise_residual_stream(model: GPT, batch: torch.Tensor) -> int:
    """Divide the residual stream by a power of two that brings its RMS near 1; no output changes.

    Muon leaves it 20 to 30 times larger than larger models have it. Every norm undoes the scale
    (its epsilon is scaled too), but adapters that read blocks' outputs would see it.

    Returns:
        The divisor.
    """
    squares: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _m, _a, out: squares.append(out.square().mean()))
        for block in model.transformer.h
    ]
    model(batch)
    for hook in hooks:
        hook.remove()
    divisor = 2 ** round(math.log2(torch.stack(squares).mean().sqrt().item()))
    for name, parameter in model.named_parameters():
        if name == "transformer.wte.weight" or name.endswith(".proj.weight"):
            parameter /= divisor
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.eps /= divisor**2
    model.config.norm_eps /= divisor**2
    return int(divisor)


def write_model_card(out_dir: Path, facts: dict, curve: list[dict]) -> None:
    """Write MODEL_CARD.md: what the model is, what it saw, how well it learnt it."""
    rows = "\n".join(
        f"| {p['step']:,} | {p['train_loss']:.3f} | {p['val_loss']:.3f} |" for p in curve
    )
    (out_dir / "MODEL_CARD.md").write_text(
        f"""# pystd

A Llama-architecture language model of {facts["parameters"]:,} parameters, small enough to \
ship inside the package,
so that every command works offline and at once. Made by `scripts/pretrain_pystd.py`; bfloat16; \
a LitGPT checkpoint.

| | |
|---|---|
| Shape | 8 blocks, n_embd 192, 6 heads, RMSNorm, LLaMAMLP (512), context 512, \
byte-level BPE of 2,048 tokens |
| Data | source of the Python {facts["python"]} standard library, docstrings removed \
(comments kept), without tests, `encodings` and `pydoc_data` |
| Training side | {facts["train_modules"]} modules, {facts["train_bytes"]:,} bytes, \
{facts["train_tokens"]:,} tokens |
| Validation side | {facts["val_modules"]} modules of other packages, \
{facts["val_bytes"]:,} bytes, {facts["val_tokens"]:,} tokens |
| Training | {facts["steps"]:,} steps of {facts["batch_tokens"]:,} tokens \
({facts["epochs"]:.1f} epochs), Muon for the blocks' matrices and AdamW for the rest, \
peak learning rate {facts["learning_rate"]}, bfloat16 autocast, \
{facts["minutes"]:.0f} minutes on {facts["threads"]} cores |
| Validation loss | **{facts["val_loss"]:.3f}** nats a token, \
{facts["val_bits_per_byte"]:.3f} bits a byte (of the committed bfloat16 weights) |
| Residual stream | divided by {facts["divisor"]} after training, so that its RMS is near 1, \
which raw features need and scaled ones do not; no output changes |
| Unigram entropy | {facts["unigram_entropy"]:.3f} nats a token, on the same validation tokens |

Use: a base for measuring fine-tuning methods (`pydoc` teaches it to write docstrings, \
which it has never seen). It is
too small to be of use as an assistant, and it knows nothing but Python source.

## Loss curve

Validation loss here is that of the first 32,768 validation tokens.

| step | training loss (mean since the row above) | validation loss |
|---|---|---|
{rows}
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=8e-3)
    parser.add_argument("--eval-interval", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    modules = [module for module in read_modules() if module.parse() is not None]
    train_modules = [m for m in modules if not m.is_validation]
    val_modules = [m for m in modules if m.is_validation]
    tokenizer = train_tokenizer([strip_docstrings(m.source) for m in train_modules], args.out_dir)
    train, val = encode(tokenizer, train_modules), encode(tokenizer, val_modules)
    print(f"{len(train):,} training tokens, {len(val):,} validation tokens", flush=True)

    model = GPT(Config(**MODEL))
    model.apply(model._init_weights)
    started = time.perf_counter()
    curve = pretrain(model, train, val[: 64 * CONTEXT + 1], args)
    minutes = (time.perf_counter() - started) / 60

    divisor = normalise_residual_stream(model, cut_windows(val, 0)[:16, :-1])
    model.to(torch.bfloat16)
    torch.save(model.state_dict(), args.out_dir / "lit_model.pth")
    (args.out_dir / "model_config.yaml").write_text(
        yaml.safe_dump(MODEL | {"norm_eps": model.config.norm_eps})
    )
    val_loss = measure_loss(model.float(), val)
    val_bytes = sum(len(strip_docstrings(m.source).encode()) for m in val_modules)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "python": platform.python_version(),
        "train_modules": len(train_modules),
        "val_modules": len(val_modules),
        "train_bytes": sum(len(strip_docstrings(m.source).encode()) for m in train_modules),
        "val_bytes": val_bytes,
        "train_tokens": len(train),
        "val_tokens": len(val),
        "steps": args.steps,
        "batch_tokens": args.batch_size * CONTEXT,
        "epochs": args.steps * args.batch_size * CONTEXT / len(train),
        "learning_rate": args.learning_rate,
        "divisor": divisor,
        "minutes": minutes,
        "threads": torch.get_num_threads(),
        "val_loss": val_loss,
        "val_bits_per_byte": val_loss * len(val) / val_bytes / math.log(2),
        "unigram_entropy": unigram_entropy(val),
    }
    write_model_card(args.out_dir, facts, curve)
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()

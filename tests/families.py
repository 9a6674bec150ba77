"""Skip adapters on one tiny model of each architecture, random ones that move its logits."""

import torch
from litgpt.config import Config

from skip2bench.models.skip import SkipGPT, SkipSettings

_SIZES = {
    "n_layer": 3,
    "n_embd": 24,
    "n_head": 4,
    "padded_vocab_size": 40,
    "vocab_size": 40,
    "block_size": 32,
    "intermediate_size": 28,
}
FAMILIES = {
    "llama-2": ("Llama-2-7b-hf", {"n_query_groups": 4}),
    "llama-3": ("Llama-3.1-8B", {"n_query_groups": 2}),
    "smollm2": ("SmolLM2-135M", {"n_query_groups": 2}),
    "tinyllama": ("tiny-llama-1.1b", {"n_query_groups": 2}),
    "mistral": ("Mistral-7B-v0.1", {"n_query_groups": 2}),
    "mixtral": ("Mixtral-8x7B-v0.1", {"n_query_groups": 2}),
    "qwen-2.5": ("Qwen2.5-0.5B", {"n_query_groups": 2}),
    "qwen-3": ("Qwen3-0.6B", {"n_query_groups": 2, "head_size": 8}),
    "phi-1.5": ("phi-1_5", {"n_head": 3}),
    "phi-2": ("phi-2", {}),
    "phi-3": ("Phi-3-mini-4k-instruct", {}),
    "gemma": ("Gemma-2b", {"n_query_groups": 2, "head_size": 4}),
    "gemma-2": ("Gemma-2-2b", {"n_query_groups": 2, "head_size": 4}),
    "gemma-3": ("Gemma-3-1b-it", {"n_query_groups": 2, "head_size": 4}),
    "olmo": ("OLMo-1B-hf", {"n_query_groups": 4}),
    "olmo-2": ("OLMo-2-1124-7B", {"n_query_groups": 4}),
    "pythia": ("pythia-14m", {"n_head": 3}),
    "stablelm-alpha": ("stablelm-base-alpha-3b", {"n_head": 3}),
    "falcon": ("falcon-7b", {"n_query_groups": 1}),
}


def adapted_model(family: str, *, share_b: bool = False) -> SkipGPT:
    """A model whose adapters, of rank 3 on blocks 0 and 2, move its logits by about their size."""
    name, extra = FAMILIES[family]
    sizes = dict(_SIZES | extra)
    known = Config.from_name(name)
    for key in ("sliding_window_indices", "rope_indices"):
        if getattr(known, key):
            sizes[key] = getattr(known, key)[: _SIZES["n_layer"]]
    torch.manual_seed(0)
    settings = SkipSettings(blocks=(0, 2), r=3, alpha=16, share_b=share_b)
    model = SkipGPT(Config.from_name(name, **sizes), settings)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(0, 0.3)
            if "norm" in parameter_name or "ln_f" in parameter_name:
                parameter.add_(1.0)
        model.adapters.relative_sizes.copy_(torch.tensor([0.3, 1.1]))
    return model.eval()

"""Small Skip-Caches, and models and samples to make them of."""

import torch
from litgpt.config import Config
from tiny import TINY

from skip2bench.cache.arrays import FileWriter, Layout, MemoryWriter
from skip2bench.cache.skip_cache import BuildOrder, SampleIndex, SkipCache, fill
from skip2bench.data.samples import IGNORE_INDEX, Samples
from skip2bench.models.skip import SkipGPT, SkipSettings

CPU = torch.device("cpu")


def make_model(target="hidden", **config):
    torch.manual_seed(0)
    model = SkipGPT(
        Config(**(TINY | {"vocab_size": 40, "padded_vocab_size": 40} | config)),
        SkipSettings(blocks=(0, 2), r=2, alpha=4, dropout=0.3, target=target),
    )
    model.requires_grad_(False)
    model.adapters.requires_grad_(True)
    torch.nn.init.normal_(model.adapters.lora_B)
    return model


def make_layout(model, dtype=torch.float32, n_logits=0):
    return Layout(
        blocks=model.feature_blocks,
        n_embd=16,
        dtype=dtype,
        compute_dtype=torch.float32,
        n_logits=n_logits,
    )


def build(model, samples, ids=range(5), *, folder=None, seen=None, **layout):
    """A cache in memory, or in files below `folder`."""
    order = BuildOrder.of(model, samples, ids, CPU)
    layout = make_layout(model, **layout)
    index = SampleIndex.of(order.ids, samples, layout)
    writer = FileWriter(layout, folder) if folder else MemoryWriter(layout, index.rows, CPU)
    fill(
        writer,
        model,
        samples,
        order,
        CPU,
        lambda done, _: seen.extend(done) if seen is not None else None,
    )
    return SkipCache(layout=layout, arrays=writer.finish(), index=index)


def serve(cache, ids):
    return cache.serve(cache.index.find_rows(ids), CPU)


PREFIX = list(range(1, 13))


def make_samples(first=0):
    """Samples of different lengths that share twelve tokens; labels from position `first` on."""
    torch.manual_seed(3)
    ids = [torch.tensor(PREFIX + torch.randint(40, (n,)).tolist()) for n in (5, 9, 1, 7)]
    ids = [torch.cat([i[:12], torch.tensor([number]), i[13:]]) for number, i in enumerate(ids)]
    labels = [i.clone() for i in ids]
    for label in labels:
        label[:first] = IGNORE_INDEX
    return Samples(input_ids=ids, labels=labels)

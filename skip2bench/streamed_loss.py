"""The loss of a model that is not in memory, on samples that no run has cached: held-out text."""

import shutil

import torch

from skip2bench.cache import BuildOrder, SampleIndex, SkipCache
from skip2bench.cache_build import disk_errors
from skip2bench.data import Samples
from skip2bench.mapped_writer import MappedWriter
from skip2bench.served_loss import ServedLoss, portion_rows
from skip2bench.streaming import StreamedBackbone, Task


@torch.no_grad()
def streamed_validation_loss(backbone: StreamedBackbone, samples: Samples) -> float:
    """Mean loss over the supervised positions, by one sweep over the blocks.

    Their features lie in a scratch file meanwhile.

    Raises:
        Skip2BenchError: the disk is full.
    """
    model, layout, device = backbone.model, backbone.layout, backbone.device
    order = BuildOrder.of(model, samples, range(len(samples)), device)
    index = SampleIndex.of(order.ids, samples)
    folder = backbone.scratch / "loss"
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            writer = MappedWriter(layout, folder, index.rows)
            backbone.fill([Task(samples=samples, order=order, layout=layout, space=writer)])
            cache = SkipCache(layout=layout, arrays=writer.finish(), index=index)
        loss = ServedLoss(model, "head")
        size = portion_rows(model, layout, "head", device)
        portions = torch.split(torch.arange(index.rows), size)
        losses = [loss(cache.serve(rows, device)).double() for rows in portions]
        return float(torch.stack(losses).sum()) / index.rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)

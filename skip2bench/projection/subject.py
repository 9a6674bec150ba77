"""A model and the data to train it on, as far as its memory depends on them."""

from dataclasses import dataclass

from litgpt.config import Config

from skip2bench.config.train import TrainConfig
from skip2bench.data.samples import TokenizedData
from skip2bench.train.plan import limit_length


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is to be trained, and on what."""

    name: str
    model_config: Config
    training: TrainConfig
    """A run's configuration; its method and blocks mean nothing."""
    has_tokenizer: bool
    """False for a model without a checkpoint: its tokens are then those of the embedded model."""
    data: TokenizedData | None
    data_problem: str | None = None
    """Why there is none."""

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest training sample; without data, all that a sample may have."""
        if self.data is None:
            return limit_length(self.training, self.model_config)
        return max(self.data.train.lengths)

    @property
    def batch_positions(self) -> tuple[int, int]:
        """Supervised positions of a global batch, at least and at most."""
        size = self.training.global_batch_size
        if self.data is None:
            positions = size * (self.longest_tokens - 1)
            return positions, positions
        counts = sorted(self.data.train.supervised_counts)
        # what is left over is an epoch's last batch
        return sum(counts[: len(counts) % size or size]), sum(counts[-size:])

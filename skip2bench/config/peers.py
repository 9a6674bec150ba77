"""The table of peers: LoRA that others wrote, and what of it each one is.

Plain data; `compare.peers` runs them. DoRA is Liu et al.'s (arXiv:2402.09353), rsLoRA
Kalajdzievski's (arXiv:2312.03732).
"""

from dataclasses import dataclass
from typing import Literal

PeerName = Literal["litgpt", "peft", "peft-dora", "peft-rslora"]
"""The names of PEERS once more, since types are spelled; a test holds the two equal."""
Program = Literal["litgpt", "peft"]


@dataclass(frozen=True, kw_only=True)
class PeerKind:
    """One way in which others train LoRA."""

    name: str
    label: str
    program: Program
    """Whose it is: LitGPT's own command, or Hugging Face PEFT."""
    has_magnitudes: bool = False
    """True where every row of an adapted weight has a magnitude that trains too: DoRA."""
    scales_by_root: bool = False
    """True where alpha is divided by the root of the rank in place of the rank: rsLoRA."""


PEERS = {
    peer.name: peer
    for peer in (
        PeerKind(name="litgpt", label="LitGPT finetune_lora", program="litgpt"),
        PeerKind(name="peft", label="Hugging Face PEFT LoRA", program="peft"),
        PeerKind(name="peft-dora", label="PEFT DoRA", program="peft", has_magnitudes=True),
        PeerKind(name="peft-rslora", label="PEFT rsLoRA", program="peft", scales_by_root=True),
    )
}

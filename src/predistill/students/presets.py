"""Named student sizes. All are Llama blocks (SwiGLU, RMSNorm, no biases); the vocabulary comes from the tokenizer.

The five sizes of the paper (arXiv 2410.16215) have its parameter counts at its vocabulary of 151,552 words; the nano
sizes are ours, for a laptop.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """The shape of a Llama-style decoder; widths in units of one activation."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool

    def parameters(self, vocab_size: int) -> int:
        """Parameters with embeddings; a tied embedding counts once."""
        return vocab_size * self.hidden * (1 if self.tied else 2) + self.non_embedding_parameters

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without input embedding and output head."""
        kv_width = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * kv_width
        block = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * block + self.hidden


PRESETS: dict[str, Preset] = {
    "nano-xs": Preset(32, 88, 2, 2, 2, tied=True),
    "nano-s": Preset(64, 176, 2, 2, 2, tied=True),
    "nano-m": Preset(128, 344, 3, 4, 4, tied=True),
    "nano-l": Preset(192, 512, 4, 6, 6, tied=True),
    "330m": Preset(1024, 4096, 12, 16, 2, tied=True),
    "670m": Preset(1024, 4096, 24, 16, 2, tied=False),
    "1.9b": Preset(2048, 6912, 24, 16, 2, tied=False),
    "3.8b": Preset(3072, 8192, 28, 24, 8, tied=False),
    "6.8b": Preset(4096, 12800, 28, 32, 8, tied=False),
}

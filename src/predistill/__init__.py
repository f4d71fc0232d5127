"""Pre-training distillation: a small language model learns from a large one's next-token distributions."""

__version__ = "0.1.0"

"""Which documents are held out: by a hash of the text alone, so that nobody trains on another's held-out documents."""

from __future__ import annotations

import xxhash

__all__ = ["is_held_out", "split_hash"]

SALT = 0x7072656469737469  # "predisti"; part of every corpus ever made, so it never changes


def split_hash(text: bytes) -> int:
    """xxh64 of a document's UTF-8 bytes under the fixed salt."""
    return xxhash.xxh64_intdigest(text, seed=SALT)


def is_held_out(text_hash: int, held_out: float) -> bool:
    """Whether the document is in the held-out split of this fraction; the split of a smaller fraction is a subset."""
    return text_hash < held_out * 2.0**64

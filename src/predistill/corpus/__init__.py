"""Corpora: from text to rows of token ids, and the order in which training meets them. No torch in here."""

from __future__ import annotations

from predistill.corpus.mixture import mixture_rows as mixture_rows
from predistill.corpus.order import batch_rows as batch_rows
from predistill.corpus.reader import Corpus as Corpus

__all__ = ["Corpus", "batch_rows", "mixture_rows"]

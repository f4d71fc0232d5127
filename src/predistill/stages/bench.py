"""One model, loaded to be measured: it lives in a process of its own (`footprint.py` asks it)."""

# B prompts  P tokens of a prompt
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from predistill.corpus import Corpus
from predistill.errors import RunError
from predistill.evaluation.footprint import MemoryPeak, measure_acceptance, time_generation
from predistill.evaluation.heldout import measure_heldout
from predistill.evaluation.respelled import heldout_texts, measure_respelled, text_bytes
from predistill.fingerprint import settings_fingerprint
from predistill.stages.inputs import pick_device
from predistill.students.build import load_tokenizer
from predistill.teachers.load import DTYPES, load_teacher

__all__ = ["Bench"]


class Bench:
    """A model and its prompts: `prompts` of `prompt_tokens` each, spread over the corpus' held-out text where the model
    has the corpus' words, random ids elsewhere. Raises PredistillError where they do not fit."""

    def __init__(
        self, model: Path, *, corpus: Path | None, dtype: str, prompts: int, prompt_tokens: int, new_tokens: int
    ) -> None:
        logging.set_verbosity_error()  # assisted generation warns of what it does itself
        self._dtype, self._new_tokens = DTYPES[dtype], new_tokens
        self._corpus = None if corpus is None else Corpus(corpus, split="held_out")
        self._model = load_teacher(model, vocab_size=0, device=pick_device(), dtype=self._dtype)
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and prompt_tokens + new_tokens > context:
            raise RunError(
                f"{model}: takes {context:,} tokens, and {prompt_tokens:,} of a prompt and {new_tokens:,} new ones are "
                f"{prompt_tokens + new_tokens:,}. Ask for fewer with --prompt-tokens and --new-tokens."
            )
        self._tokenizer = _tokenizer(model)
        self._columns = int(self._model.get_output_embeddings().weight.shape[0])
        self._has_corpus_words = self._corpus is not None and self._fits(self._corpus)
        self._prompt_BP = self._prompts(prompts, prompt_tokens)
        time_generation(self._model, self._prompt_BP[:1, :1], new_tokens=2)  # libraries load parts of theirs late
        self._memory = MemoryPeak(self._model)

    def facts(self) -> dict[str, Any]:
        """What is known before anything is measured; models of equal `words` have the same words under the same ids."""
        return {
            "parameters": sum(parameter.numel() for parameter in self._model.parameters()),
            "threads": torch.get_num_threads(),
            "words": (self._columns, None if self._tokenizer is None else _words(self._tokenizer)),
        }

    def time(self, *, batch: int) -> dict[str, float]:
        """One turn of a batch of prompts."""
        timing = time_generation(self._model, self._prompt_BP[:batch], new_tokens=self._new_tokens)
        return {"first_token_seconds": timing.first_token_seconds, "decode_seconds": timing.decode_seconds}

    def memory(self) -> dict[str, int | None]:
        """The most bytes that all turns so far took: of the model's own, and of the whole process."""
        return {"peak_memory_bytes": self._memory.bytes, "process_memory_bytes": self._memory.process_bytes}

    def quality(self, *, rows: int) -> dict[str, float | None]:
        """Held-out loss in nats a token, where the words are the corpus'; bits a byte of the same rows' text, where the
        corpus is text and the words are known."""
        corpus = self._corpus
        if corpus is None:
            return {"loss_nats": None, "bits_per_byte": None}
        rows = min(rows, len(corpus))
        texts = [] if corpus.instruct else heldout_texts(corpus, rows=rows)
        nats, loss = None, None
        if self._has_corpus_words:
            said = measure_heldout(self._model, corpus, teacher=None, rows=rows).student
            nats, loss = said.loss_sum, said.loss_sum / said.tokens if said.tokens else None
        elif texts and self._tokenizer is not None and self._tokenizer.eos_token_id is not None:
            nats, _ = measure_respelled(
                self._model,
                texts,
                self._tokenizer,
                end_id=self._tokenizer.eos_token_id,
                row_len=corpus.row_len,
                document_mask=corpus.document_mask,
            )
        size = text_bytes(texts)
        return {"loss_nats": loss, "bits_per_byte": nats / math.log(2) / size if nats is not None and size else None}

    def acceptance(self, *, teacher: Path) -> dict[str, Any] | None:
        """What `teacher`, loaded beside it, accepts of this model's proposals for held-out prompts; None without."""
        if not self._has_corpus_words:
            return None
        larger = load_teacher(teacher, vocab_size=self._columns, device=self._model.device, dtype=self._dtype)
        return measure_acceptance(larger, self._model, self._prompt_BP, new_tokens=self._new_tokens).record()

    def _fits(self, corpus: Corpus) -> bool:
        if self._tokenizer is None:
            return self._columns == corpus.vocab_size
        return self._columns >= corpus.vocab_size and _words(self._tokenizer) == _words(load_tokenizer(corpus.path))

    def _prompts(self, prompts: int, prompt_tokens: int) -> torch.Tensor:
        if self._corpus is None or not self._has_corpus_words:
            random = torch.Generator().manual_seed(0)
            prompt_BP = torch.randint(self._columns, (prompts, prompt_tokens), generator=random)
        else:
            spare = self._corpus.split_stats["tokens"] - prompt_tokens
            if spare < 0:
                raise RunError(
                    f"{self._corpus.path}: its held-out text has {self._corpus.split_stats['tokens']:,} tokens, fewer "
                    f"than --prompt-tokens {prompt_tokens:,}. Ask for fewer, or prepare it with a larger --held-out."
                )
            starts = [spare * number // max(prompts - 1, 1) for number in range(prompts)]
            rows = [self._corpus.stream(start, start + prompt_tokens).tolist() for start in starts]
            prompt_BP = torch.tensor(rows)
        return prompt_BP.to(self._model.device)


def _tokenizer(model: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model; None where there is none that loads."""
    try:
        return load_tokenizer(model)
    except RunError:
        return None


def _words(tokenizer: PreTrainedTokenizerBase) -> str:
    return settings_fingerprint(tokenizer.get_vocab())

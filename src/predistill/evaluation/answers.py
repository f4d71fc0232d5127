"""The model as lm-eval sees it: it reads the same prompts and gives the same scores as lm-eval's own model class, which
it is, but scores what begins alike as one tree (branches.py), and tokenises a task at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import lm_eval.api.task
import lm_eval.models.huggingface as engine
import numpy as np
import torch
from lm_eval.api.instance import Instance
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from predistill.errors import RunError
from predistill.evaluation.branches import Sequenced, score, sees_branches
from predistill.students.forward import head_of

__all__ = ["Answers", "quiet"]

GENERATED_TOKENS = 256
GENERATED_ROWS = 16  # prompts that are answered side by side


class Answers(engine.HFLM):  # type: ignore[misc]  # lm-eval has no types
    """A causal model's answers. `opens_with`: the token that stands before every prompt (None: what its tokenizer adds
    by itself, as lm-eval does). `cut` holds the documents whose prompt lost its beginning, since `begin`.

    Raises RunError for a tokenizer that is not the model's.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, opens_with: int | None = None
    ) -> None:
        words = head_of(model).weight_VD.shape[0]
        if len(tokenizer) > words:
            raise RunError(
                f"The tokenizer has {len(tokenizer):,} words and the model {words:,}. Put the model's own beside it."
            )
        if tokenizer.eos_token_id is None:
            raise RunError("The tokenizer names no end token. Add eos_token to the tokenizer_config.json beside it.")
        with quiet():
            super().__init__(
                pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=GENERATED_ROWS,
                prefix_token_id=opens_with,
            )  # fmt: skip
        self.opens_with = opens_with
        self.branching = sees_branches(model)
        self.begin([], None)

    def begin(self, places: Sequence[str], on_progress: Callable[[float], None] | None) -> None:
        """A new task: its documents stand at `places`, and `on_progress` hears what share of its requests is done."""
        self.cut: set[int] = set()
        self._known: dict[str, list[int]] = {}
        self._documents: list[int] = []
        self._places, self._on_progress = places, on_progress

    @property
    def opening(self) -> str | None:
        """The token that opens every prompt, as text."""
        return None if self.opens_with is None else str(self.tokenizer.decode([self.opens_with]))

    @property
    def max_gen_toks(self) -> int:
        """Half a short context is left to the prompt."""
        return int(min(GENERATED_TOKENS, self.max_length // 2))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if kwargs or (add_special_tokens is not None and self.opens_with is None):
            ids: list[int] = super().tok_encode(string, add_special_tokens=add_special_tokens, **kwargs)
            return ids
        if string not in self._known:
            self._encode([string])
        opened = [self.opens_with] if self.opens_with is not None and add_special_tokens is None else []
        return [*opened, *self._known[string]]

    def tok_batch_encode(
        self, strings: Sequence[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [B, T] and which of them count, padded on the left; prompts keep their last `left_truncate_len`."""
        assert padding_side == "left"
        rows = [self.tok_encode(string)[-(left_truncate_len or 0) :] for string in strings]
        size = max(map(len, rows))
        ids_BT = torch.full((len(rows), size), self.eot_token_id)
        counts_BT = torch.zeros(len(rows), size, dtype=torch.long)
        for i, row in enumerate(rows):
            ids_BT[i, size - len(row) :], counts_BT[i, size - len(row) :] = torch.tensor(row), 1
        return ids_BT, counts_BT

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[tuple[float, bool]]:
        pairs = [request.args for request in requests]
        self._encode(text for context, continuation in pairs for text in (context.rstrip(), context + continuation))
        self._documents = [request.doc_id for request in requests]
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        self._documents = []
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        sequences, longest = [], self.max_length + 1
        for document, (texts, context, continuation) in zip_longest(self._documents[: len(requests)], requests):
            ids = [*context, *continuation]
            self._check_words(texts, continuation, document)
            if len(ids) > longest and document is not None:
                self.cut.add(document)
            scored = min(len(continuation), longest - 1)
            sequences.append(Sequenced(np.array(ids[-longest:], np.int64), scored))
        found = score(self.model, sequences, branching=self.branching, on_progress=self._share(len(requests)))
        return [(scored.logprob, scored.greedy) for scored in found]

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        longest = self.max_length - self.max_gen_toks
        self._encode(request.args[0] for request in requests)
        self.cut |= {request.doc_id for request in requests if len(self.tok_encode(request.args[0])) > longest}
        answers: list[str] = []
        tell = self._share(len(requests))
        for begin in range(0, len(requests), 4 * GENERATED_ROWS):  # of a part at a time, so that progress is seen
            part = requests[begin : begin + 4 * GENERATED_ROWS]
            answers += super().generate_until(part, disable_tqdm=True)
            if tell is not None:
                tell(len(part))
        return answers

    def _share(self, total: int) -> Callable[[int], None] | None:
        """What takes how many more of `total` requests are done, and tells the share of all that is."""
        told, done = self._on_progress, 0
        if told is None:
            return None

        def more(count: int) -> None:
            nonlocal done
            done += count
            told(done / total)

        return more

    def _check_words(self, texts: tuple[str, str] | None, continuation: Sequence[int], document: int | None) -> None:
        unknown = self.tokenizer.unk_token_id
        known = unknown is None or unknown == self.eot_token_id or unknown not in continuation
        if texts is not None and document is not None and not (continuation and known):
            raise RunError(
                f"{self._places[document]}: the model's tokenizer has no words for {texts[1].strip()[:40]!r}. Leave "
                "the task out, or take a model of its language."
            )

    def _encode(self, texts: Iterable[str]) -> None:
        """Tokenise what is not known yet, at once: a tenth of the time that one after the other takes."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            ids = self.tokenizer(new, add_special_tokens=self.opens_with is None)["input_ids"]
            self._known.update(zip(new, ids, strict=True))


@contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's own bars and its notes on how it is called."""
    logger = logging.getLogger("lm_eval")
    bar, level = lm_eval.api.task.tqdm, logger.level
    lm_eval.api.task.tqdm = lambda items, **_: items
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar
        logger.setLevel(level)

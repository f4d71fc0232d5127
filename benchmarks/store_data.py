"""What store.py packs: the targets of two teachers on real text, a file a row, made once in a folder and gone on with.

    PREDISTILL_GGUF=SmolLM2-135M-Instruct.Q4_1.gguf python benchmarks/store_data.py --work FOLDER

Text and tokenizers are those of $PREDISTILL_DATA. Not a benchmark itself. Every position keeps its 100 most probable
words, the log of what is left, and 50 draws from the whole distribution:

  FOLDER/smollm2/NNN.npz   SmolLM2 135M, 49,152 words: its forward pass over English text, 10 CPU seconds a row
  FOLDER/mixture/NNN.npz   a vocabulary of 151,936 words, too large for a real teacher on a CPU: the `Mixture` below

T positions of a row  V vocabulary  R draws
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from corpora import DATA, gguf_teacher

from predistill.corpus import Corpus
from predistill.corpus.text import texts
from predistill.memory import keep_freed_memory
from predistill.objective import Sampled, TopK
from predistill.stages.prepare import prepare
from predistill.students.forward import head_of, hidden_states
from predistill.teachers.load import load_teacher

ROWS, ROW_LEN, KEPT, DRAWS = 52, 2048, 100, 50
DOCUMENT_CHARACTERS = 20_000

Arrays = dict[str, npt.NDArray[Any]]  # of one row: tokens [T + 1]; ids, logprob [T, 100]; s_ids, s_count [T, 50]; ...


class Text(NamedTuple):
    """Which text a teacher sees: characters of each corpus, every how many documents, the share that is held out."""

    characters: dict[str, int]
    every: int
    held_out: float
    tokenizer: str


TEXTS = {
    "smollm2": Text(
        {"en_wiki": 260_000, "en_books": 120_000, "en_textbooks": 120_000, "en_factbook": 60_000},
        every=11, held_out=0.0, tokenizer="smollm2",
    ),
    "mixture": Text(
        {
            "en_wiki": 16_000_000, "en_books": 8_000_000, "en_textbooks": 4_000_000, "en_factbook": 2_000_000,
            "zh_wiki": 8_000_000, "zh_poetry": 1_000_000,
        },
        every=1, held_out=0.02, tokenizer="qwen3",
    ),
}  # fmt: skip


def targets_of(name: str, work: Path) -> list[Arrays] | None:
    """The rows of one teacher, made where they are not there yet; None where its teacher is not here."""
    paths = [work / name / f"{row:03d}.npz" for row in range(ROWS)]
    if not all(path.exists() for path in paths):
        if name == "smollm2" and gguf_teacher() is None:
            return None
        corpus = _corpus(work, name)
        make = {"smollm2": _smollm2, "mixture": _mixture}[name](corpus)
        (work / name).mkdir(exist_ok=True)
        for row, path in enumerate(paths):
            if not path.exists():
                part = path.with_name(f"{path.stem}.part.npz")
                np.savez(part, **make(row))
                part.replace(path)
                print(path.relative_to(work), flush=True)
    return [dict(np.load(path)) for path in paths]


def _corpus(work: Path, name: str) -> Path:
    folder, text = work / f"{name}-corpus", TEXTS[name]
    if folder.exists():
        return folder
    work.mkdir(parents=True, exist_ok=True)
    tokenizer, source = work / f"{name}-tokenizer", work / f"{name}.jsonl"
    tokenizer.mkdir(exist_ok=True)
    packed = (DATA / "tokenizers" / f"{text.tokenizer}.tokenizer.json.zst").read_bytes()
    (tokenizer / "tokenizer.json").write_bytes(zstandard.ZstdDecompressor().decompress(packed))
    with source.open("w", encoding="utf-8") as file:
        for corpus, budget in text.characters.items():
            used = 0
            for number, document in enumerate(texts([DATA / "corpora" / f"{corpus}.jsonl.zst"])):
                if number % text.every == 0 and used <= budget:
                    part = document.decode()[:DOCUMENT_CHARACTERS]
                    used += len(part)
                    file.write(json.dumps({"text": part}) + "\n")
    prepare([source], out=folder, tokenizer=tokenizer, row_len=ROW_LEN, held_out=text.held_out, processes=1)
    return folder


def _smollm2(corpus_path: Path) -> Callable[[int], Arrays]:
    teacher, corpus = gguf_teacher(), Corpus(corpus_path)
    assert teacher is not None
    model = load_teacher(teacher, vocab_size=corpus.vocab_size, device=torch.device("cpu"), dtype=torch.float32)
    head = head_of(model)

    @torch.inference_mode()
    def make(row: int) -> Arrays:
        ids = torch.from_numpy(corpus.rows([row])[0])
        hidden_TD = hidden_states(model, ids[:, :-1], end_id=None)[0]
        pieces = []
        for start in range(0, ROW_LEN, 256):
            here = slice(start, start + 256)
            logit_NV, label_N = head.logits(hidden_TD[here])[:, : corpus.vocab_size], ids[0, 1:][here]
            kept = TopK(k=KEPT)(logit_NV, label_N)
            drawn = Sampled(draws=DRAWS)(logit_NV, generator=torch.Generator().manual_seed(row * 10 + start))
            assert drawn.ids_NK is not None
            assert drawn.weight_NK is not None
            s_ids, s_count = np.full((256, DRAWS), -1, np.int32), np.zeros((256, DRAWS), np.int32)
            s_ids[:, : drawn.ids_NK.shape[1]] = drawn.ids_NK.numpy()
            s_count[:, : drawn.ids_NK.shape[1]] = (drawn.weight_NK * DRAWS).round().numpy()
            tensors = {
                "ids": kept.ids_NK, "logprob": kept.logprob_NK, "rest": kept.log_rest_N, "entropy": kept.entropy_N,
                "std": kept.logit_std_N, "label": kept.label_logprob_N,
            }  # fmt: skip
            arrays = {name: tensor.numpy() for name, tensor in tensors.items() if tensor is not None}
            pieces.append({**arrays, "ids": arrays["ids"].astype(np.int32), "s_ids": s_ids, "s_count": s_count})
        whole = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        return {"tokens": ids[0].numpy().astype(np.int32), **whole}

    return make


# The mixture teacher.

MIXTURE_WORDS = 151_936  # as models of this tokenizer have them: its words, and padding that is never in a text
DISCOUNT, UNSEEN = 0.75, 0.01
CACHE, CACHE_TOKENS, CACHE_DECAY = 0.12, 512, 150.0
SHARPNESS = 1.3  # without it 90 words are kept at top-.95-100, more than of a real teacher; with it about 65
MIXTURE_FACTS = {
    "what": "interpolated n-gram model with absolute discounting, fitted on the training split, read on held-out rows, "
    "mixed with a recency cache of the row, to a power, normalised",
    "orders": [1, 2, 3, 4],
    "discount": DISCOUNT,
    "unigram": f"counts + {UNSEEN}",
    "cache": f"weight {CACHE}: the last {CACHE_TOKENS} tokens of the row, exp(-age / {CACHE_DECAY:g})",
    "power": SHARPNESS,
    "arithmetic": "float64 over all words at every position",
    "fitted_on_characters": TEXTS["mixture"].characters,
    "held_out": TEXTS["mixture"].held_out,
}


class Grams(NamedTuple):
    """All n-grams of one order n: `key` = number of the (n-1)-gram before * V + word, ascending.

    Continuations of context c are lines start[c] to start[c + 1]; weight = (count - discount) / count of the context.
    """

    key: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    word: npt.NDArray[np.int32]
    weight: npt.NDArray[np.float64]


class Mixture:
    """p ~ ((1 - cache) p_4 + cache recent)^power; p_n(w | context) = max(count - d, 0) / all + d kinds / all p_(n-1).

    A context that was never seen leaves all to the order below.
    """

    def __init__(self, tokens: npt.NDArray[np.int64]) -> None:
        counts_V = np.bincount(tokens, minlength=MIXTURE_WORDS) + UNSEEN
        self.unigram_V = counts_V / counts_V.sum()
        self.grams: list[Grams] = []
        context, contexts = tokens, MIXTURE_WORDS
        for order in (2, 3, 4):
            key, number, count = np.unique(
                context[:-1] * MIXTURE_WORDS + tokens[order - 1 :], return_inverse=True, return_counts=True
            )
            start = np.concatenate(([0], np.cumsum(np.bincount(key // MIXTURE_WORDS, minlength=contexts))))
            total = np.add.reduceat(count, start[:-1][np.diff(start) > 0])
            weight = (count - DISCOUNT) / np.repeat(total, np.diff(start)[np.diff(start) > 0])
            self.grams.append(Grams(key, start, (key % MIXTURE_WORDS).astype(np.int32), weight))
            context, contexts = number, len(key)

    def logprobs(self, tokens: npt.NDArray[np.int64], out_V: npt.NDArray[np.float64]) -> None:
        """Fill out_V with the log-probabilities after `tokens`, the row so far."""
        cache = CACHE if len(tokens) else 0.0
        mass, parts = 1.0 - cache, []
        for grams, context in reversed(list(zip(self.grams, self._contexts(tokens), strict=False))):
            here = slice(grams.start[context], grams.start[context + 1])
            if here.stop > here.start:
                parts.append((grams.word[here], mass * grams.weight[here]))
                mass *= 1.0 - grams.weight[here].sum()
        np.multiply(self.unigram_V, mass, out=out_V)
        for word, share in parts:
            out_V[word] += share
        recent = tokens[-CACHE_TOKENS:]
        if len(recent):
            weight = np.exp(-np.arange(len(recent))[::-1] / CACHE_DECAY)
            np.add.at(out_V, recent, cache * weight / weight.sum())
        np.log(out_V, out=out_V)
        out_V *= SHARPNESS
        out_V -= np.log(np.exp(out_V).sum())

    def _contexts(self, tokens: npt.NDArray[np.int64]) -> list[int]:
        """The numbers of the last 1, 2 and 3 tokens as contexts, as far as each was seen."""
        found = []
        for length in range(1, min(3, len(tokens)) + 1):
            number = int(tokens[-length])
            for grams, token in zip(self.grams, tokens[len(tokens) - length + 1 :], strict=False):
                key = number * MIXTURE_WORDS + int(token)
                number = int(np.searchsorted(grams.key, key))
                if number == len(grams.key) or grams.key[number] != key:
                    return found
            found.append(number)
        return found


def _mixture(corpus_path: Path) -> Callable[[int], Arrays]:
    train, held_out = Corpus(corpus_path), Corpus(corpus_path, "held_out")
    mixture = Mixture(train.rows(np.arange(len(train)))[0][:, :-1].ravel())
    common_ids = np.argsort(-mixture.unigram_V, kind="stable")[:KEPT]

    def make(row: int) -> Arrays:
        tokens, rng = held_out.rows([row])[0][0], np.random.default_rng(row)
        per_position: list[Arrays] = []
        logprob_V = np.empty(MIXTURE_WORDS)
        for position in range(ROW_LEN):
            mixture.logprobs(tokens[: position + 1], logprob_V)
            per_position.append(_position(logprob_V, common_ids, int(tokens[position + 1]), rng))
        whole = {name: np.stack([arrays[name] for arrays in per_position]) for name in per_position[0]}
        return {"tokens": tokens.astype(np.int32), **whole}

    return make


def _position(
    logprob_V: npt.NDArray[np.float64], common_ids: npt.NDArray[np.int64], label: int, rng: np.random.Generator
) -> Arrays:
    few = np.flatnonzero(logprob_V >= logprob_V[common_ids].min())  # any 100 words bound the 100th largest from below
    ids = few[np.argsort(-logprob_V[few], kind="stable")[:KEPT]]
    p_V = np.exp(logprob_V)
    total_V = np.cumsum(p_V)
    drawn = np.searchsorted(total_V, rng.random(DRAWS) * total_V[-1], side="right")
    drawn, count = np.unique(drawn, return_counts=True)
    missing = DRAWS - len(drawn)
    rest = p_V.sum() - p_V[ids].sum()
    arrays = {
        "ids": ids.astype(np.int32), "logprob": logprob_V[ids].astype(np.float32), "rest": np.log(rest),
        "entropy": -(p_V @ logprob_V), "std": logprob_V.std(), "label": logprob_V[label],
        "s_ids": np.pad(drawn, (0, missing), constant_values=-1).astype(np.int32),
        "s_count": np.pad(count, (0, missing)).astype(np.int32),
    }  # fmt: skip
    return {name: np.asarray(value, np.float32) if np.ndim(value) == 0 else value for name, value in arrays.items()}


def work_folder() -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the rows are kept")
    return parser.parse_args().work


def main() -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    work = work_folder()
    for name in TEXTS:
        print(name, "absent" if targets_of(name, work) is None else "ready")


if __name__ == "__main__":
    main()

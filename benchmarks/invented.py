"""A corpus of random words and a store of random targets, for any vocabulary: what a step costs does not depend on what
they say. Not a benchmark itself.

E entries of a row  T positions of a row  V vocabulary
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from predistill.corpus import Corpus
from predistill.fingerprint import row_hash
from predistill.stages.prepare import prepare
from predistill.store import RowTargets, StoreWriter

END = "<|endoftext|>"
MASS_KEPT = 0.95


def invented_corpus(folder: Path, *, vocabulary: int, rows: int, row_len: int) -> Corpus:
    """Rows of words by Zipf's law."""
    words = {END: 0} | {f"w{number}": number for number in range(1, vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=END))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    rng = np.random.default_rng(0)
    with (folder / "text.jsonl").open("w") as file:
        for _ in range(rows + 1):
            drawn = rng.zipf(1.2, size=row_len) % (vocabulary - 1) + 1
            file.write(json.dumps({"text": " ".join(f"w{number}" for number in drawn)}) + "\n")
    prepare(
        [folder / "text.jsonl"],
        out=folder / "corpus",
        tokenizer=folder / "tokenizer" / "tokenizer.json",
        row_len=row_len,
        held_out=0.0,
    )
    return Corpus(folder / "corpus")


def invented_store(folder: Path, corpus: Corpus, *, kept: int, most: int) -> Path:
    """Targets of every row: `kept` entries a position in the mean and `most` at the most, .95 of the mass."""
    rng, vocabulary = np.random.default_rng(0), corpus.vocab_size
    facts = {
        "teacher": {"name": "invented"},
        "corpus": {"fingerprint": corpus.fingerprint, "document_mask": corpus.document_mask},
        "truncation": {"kind": "top_p_k", "p": MASS_KEPT, "k": most},
    }
    with StoreWriter(folder, manifest=facts, permutation=np.arange(vocabulary)) as writer:
        for row in range(len(corpus)):
            ids = corpus.rows([row])[0][0]
            writer.write(row, row_hash(ids), _targets(rng, row, corpus.row_len, vocabulary, kept=kept, most=most))
        writer.seal({}, rows_expected=len(corpus))
    return folder


def _targets(rng: np.random.Generator, row: int, row_len: int, vocabulary: int, *, kept: int, most: int) -> RowTargets:
    lengths = np.minimum(rng.geometric(1 / kept, size=row_len), most) if kept < most else np.full(row_len, most)
    ids, logprobs = [], []
    for length in lengths:
        logprob = -np.sort(rng.exponential(2.0, size=length)) if length > 1 else np.zeros(1)
        logprobs.append(logprob - np.log(np.exp(logprob).sum()) + np.log(MASS_KEPT))
        ids.append((rng.integers(vocabulary) + rng.permutation(most)[:length] * (vocabulary // most)) % vocabulary)
    return RowTargets(
        row_ids=np.array([row]),
        positions=row_len,
        length_N=lengths.astype(np.int32),
        ids_E=np.concatenate(ids).astype(np.int32),
        logprob_E=np.concatenate(logprobs).astype(np.float32),
        log_rest_N=np.full(row_len, np.log(1 - MASS_KEPT), np.float32),
    )

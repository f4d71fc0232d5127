"""The tokenizer of a corpus: given, or trained here as byte-level BPE; saved so that Transformers loads it.

Byte-level BPE over GPT-2's split into words needs no language: every text has an encoding, and Chinese phrases between
punctuation are words whose bytes merge into characters first and frequent words later.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from predistill.corpus.split import is_held_out, split_hash
from predistill.errors import CorpusError
from predistill.files import write_atomic

__all__ = ["END_TOKEN", "CorpusTokenizer", "load_tokenizer", "sample_texts", "train_bpe", "trained_config"]

END_TOKEN = "<|endoftext|>"
KNOWN_END_TOKENS = (END_TOKEN, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<|eot_id|>")
SAMPLE_BYTES = 20_000_000
SMALLEST_VOCAB = 257  # 256 bytes and the end token


@dataclass(frozen=True)
class CorpusTokenizer:
    """A tokenizer with the token that opens the stream and closes documents; `config` is its tokenizer_config.json."""

    tokenizer: Tokenizer
    end_token: str
    config: dict[str, Any] = field(repr=False)

    @property
    def end_id(self) -> int:
        end_id = self.tokenizer.token_to_id(self.end_token)
        assert end_id is not None
        return int(end_id)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: added tokens count, and so do holes."""
        return int(max(self.tokenizer.get_vocab(with_added_tokens=True).values())) + 1

    def text_bytes(self, ids: npt.NDArray[np.integer[Any]]) -> int:
        """UTF-8 bytes of the text that `ids` stand for, end tokens left out."""
        words = ids[ids != self.end_id].tolist()
        return len(self.tokenizer.decode(words, skip_special_tokens=False).encode())

    @property
    def special_tokens(self) -> list[str]:
        """What the tokenizer reads as one token of its own, spelled out, where it is let."""
        return [token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special]

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        write_atomic(folder / "tokenizer.json", self.tokenizer.to_str(pretty=True).encode())
        config = json.dumps(self.config, indent=2, ensure_ascii=False) + "\n"
        write_atomic(folder / "tokenizer_config.json", config.encode())


def load_tokenizer(path: str | Path) -> CorpusTokenizer:
    """Load a tokenizer.json, or a folder (a Hugging Face model, a prepared corpus) that holds one.

    Its end token is the `eos_token` of the tokenizer_config.json beside it, else the first known one it has.
    Raises `CorpusError` when there is no tokenizer, it is not readable, or it has no end token.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise CorpusError(f"{file}: no such tokenizer. Give a tokenizer.json or a folder that holds one.")
    try:
        tokenizer = Tokenizer.from_str(file.read_text("utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise CorpusError(f"{file}: not readable as a tokenizer ({error}). Give a tokenizer.json.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _config_beside(file)
    end_token = _end_token(tokenizer, config, file)
    return CorpusTokenizer(tokenizer, end_token, {**_config(end_token), **config, "eos_token": end_token})


def _config_beside(file: Path) -> dict[str, Any]:
    path = file.with_name("tokenizer_config.json")
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CorpusError(f"{path}: not JSON ({error}). Mend it, or move it away to go without.") from None
    if not isinstance(config, dict):
        raise CorpusError(f"{path}: not a JSON object. Mend it, or move it away to go without.")
    return config


def _end_token(tokenizer: Tokenizer, config: dict[str, Any], file: Path) -> str:
    named = config.get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    for token in [named] if named else KNOWN_END_TOKENS:
        if tokenizer.token_to_id(token) is not None:
            return str(token)
    found = (
        f'its end token "{named}" is not in its vocabulary' if named else "the tokenizer has no end token that we know"
    )
    raise CorpusError(f'{file}: {found}. Name one of its tokens as "eos_token" in a tokenizer_config.json beside it.')


def _config(end_token: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_token,
        "eos_token": end_token,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }


def trained_config() -> dict[str, Any]:
    """The tokenizer_config.json of every tokenizer that is trained here."""
    return _config(END_TOKEN)


def train_bpe(texts: Iterable[bytes], *, vocab_size: int) -> CorpusTokenizer:
    """Train byte-level BPE of exactly `vocab_size` entries (end token 0, then the 256 bytes, then merges).

    Raises `CorpusError` when the size is below 257, or the text is too short or uniform for it.
    """
    if vocab_size < SMALLEST_VOCAB:
        raise CorpusError(f"--train-tokenizer {vocab_size}: byte-level BPE needs at least {SMALLEST_VOCAB} entries.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.decode(errors="ignore") for text in texts), trainer)
    trained = CorpusTokenizer(tokenizer, END_TOKEN, trained_config())
    if trained.vocab_size != vocab_size:
        found = f"the text yields only {trained.vocab_size} entries"
        raise CorpusError(f"--train-tokenizer {vocab_size}: {found}. Ask for that many or give more text.")
    return trained


def sample_texts(documents: Iterable[bytes], *, held_out: float, sample_bytes: int = SAMPLE_BYTES) -> Iterator[bytes]:
    """A sample to train a tokenizer on: the documents with the largest split hash, until `sample_bytes` are full.

    The hash makes it the same whatever the order of the documents, and the largest are furthest from held-out. A
    document longer than the sample is cut.
    """
    kept: list[tuple[int, bytes]] = []
    kept_bytes = 0
    for text in documents:
        text_hash = split_hash(text)
        if is_held_out(text_hash, held_out):
            continue
        heapq.heappush(kept, (text_hash, text[:sample_bytes]))
        kept_bytes += min(len(text), sample_bytes)
        while kept_bytes - len(kept[0][1]) >= sample_bytes:
            kept_bytes -= len(heapq.heappop(kept)[1])
    return (text for _, text in sorted(kept, reverse=True))

"""A tokenizer trained here has the size asked for, loses nothing, reloads in Transformers; a given one is checked."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from predistill.corpus import tokenizer as module
from predistill.corpus.split import is_held_out, split_hash
from predistill.corpus.tokenizer import CorpusTokenizer, load_tokenizer, sample_texts, train_bpe
from predistill.errors import CorpusError

ENGLISH = ["the", "cat", "sat", "on", "mat", "and", "then", "another", "looked", "at", "their", "large", "garden"]
CHINESE = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少床前明月光疑是地上霜"


def made_texts(count: int, seed: int = 0) -> list[bytes]:
    draw = random.Random(seed)
    english = (" ".join(draw.choices(ENGLISH, k=40)) for _ in range(count))
    chinese = ("，".join("".join(draw.choices(CHINESE, k=7)) for _ in range(8)) for _ in range(count))
    return [text.encode() for pair in zip(english, chinese, strict=True) for text in pair]


@pytest.fixture(scope="module")
def trained() -> CorpusTokenizer:
    return train_bpe(made_texts(100), vocab_size=400)


def test_a_trained_tokenizer_has_exactly_the_size_asked_for(trained: CorpusTokenizer) -> None:
    assert trained.vocab_size == 400
    assert sorted(trained.tokenizer.get_vocab().values()) == list(range(400))
    assert (trained.end_token, trained.end_id) == ("<|endoftext|>", 0)
    assert train_bpe(made_texts(1), vocab_size=257).vocab_size == 257


@given(st.text())
@settings(max_examples=200)
def test_any_text_survives(trained: CorpusTokenizer, text: str) -> None:
    ids = trained.tokenizer.encode(text, add_special_tokens=False).ids
    assert trained.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_training_is_reproducible(trained: CorpusTokenizer) -> None:
    assert train_bpe(made_texts(100), vocab_size=400).tokenizer.to_str() == trained.tokenizer.to_str()


def test_frequent_chinese_characters_and_english_words_become_tokens(trained: CorpusTokenizer) -> None:
    for text in CHINESE, " ".join(ENGLISH):
        units = len(text.split()) if " " in text else len(text)
        assert len(trained.tokenizer.encode(text).ids) <= 1.3 * units


@pytest.mark.parametrize(
    ("vocab_size", "says"), [(256, "at least 257"), (50_000, r"yields only \d+ entries\. Ask for that many")]
)
def test_a_size_that_cannot_be_had_is_refused(vocab_size: int, says: str) -> None:
    with pytest.raises(CorpusError, match=rf"--train-tokenizer {vocab_size}: .*{says}"):
        train_bpe(made_texts(5), vocab_size=vocab_size)


def test_transformers_reads_the_same_tokenizer(trained: CorpusTokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    trained.save(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (len(reloaded), reloaded.eos_token_id, reloaded.bos_token_id) == (400, 0, 0)
    for text in made_texts(3, seed=1):
        ids = trained.tokenizer.encode(text.decode()).ids
        assert reloaded(text.decode(), add_special_tokens=False)["input_ids"] == ids
        assert reloaded.decode(ids) == text.decode()


def test_the_sample_is_the_largest_hashes_outside_held_out() -> None:
    texts = made_texts(200)
    allowed = sorted((text for text in texts if not is_held_out(split_hash(text), 0.3)), key=split_hash, reverse=True)
    expected: list[bytes] = []
    while sum(map(len, expected)) < 5000:
        expected.append(allowed[len(expected)])
    assert list(sample_texts(texts, held_out=0.3, sample_bytes=5000)) == expected
    assert list(sample_texts(texts[::-1], held_out=0.3, sample_bytes=5000)) == expected
    assert list(sample_texts(texts, held_out=0.3)) == allowed


def test_one_long_document_does_not_break_the_bound_of_the_sample() -> None:
    (text,) = sample_texts([CHINESE.encode() * 100], held_out=0.0, sample_bytes=1000)
    assert len(text) == 1000
    assert train_bpe([text], vocab_size=260).vocab_size == 260  # the cut goes through a character


def given_tokenizer(folder: Path, *tokens: str, config: object = None, name: str = "tokenizer.json") -> Path:
    tokenizer = Tokenizer(models.WordLevel({"[unk]": 0, "a": 1, "b": 2}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(tokens))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(folder / name))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / name


def test_a_given_tokenizer_is_a_file_or_a_folder(tmp_path: Path) -> None:
    path = given_tokenizer(tmp_path, "<s>", "</s>")
    for loaded in load_tokenizer(path), load_tokenizer(tmp_path):
        assert (loaded.end_token, loaded.end_id, loaded.vocab_size) == ("</s>", 4, 5)
        assert loaded.tokenizer.encode("a b a b a b").ids == [1, 2, 1, 2, 1, 2], (
            "padding and truncation are the model's"
        )
    load_tokenizer(tmp_path).save(tmp_path)
    assert load_tokenizer(tmp_path).end_token == "</s>"


@pytest.mark.parametrize("named", ["<stop>", {"content": "<stop>", "special": True}])
def test_the_configured_end_token_comes_first(tmp_path: Path, named: object) -> None:
    given_tokenizer(tmp_path, "</s>", "<stop>", config={"eos_token": named, "tokenizer_class": "Mine"})
    loaded = load_tokenizer(tmp_path)
    assert (loaded.end_token, loaded.end_id) == ("<stop>", 4)
    assert (loaded.config["eos_token"], loaded.config["tokenizer_class"]) == ("<stop>", "Mine")


@pytest.mark.parametrize(
    ("tokens", "config", "says"),
    [
        (("<s>",), None, "the tokenizer has no end token that we know"),
        (("</s>",), {"eos_token": "<stop>"}, 'its end token "<stop>" is not in its vocabulary'),
    ],
)
def test_a_tokenizer_without_an_end_token_is_refused(
    tmp_path: Path, tokens: tuple[str, ...], config: object, says: str
) -> None:
    path = given_tokenizer(tmp_path, *tokens, config=config)
    with pytest.raises(CorpusError) as error:
        load_tokenizer(path)
    assert str(error.value) == (
        f'{path}: {says}. Name one of its tokens as "eos_token" in a tokenizer_config.json beside it.'
    )


def test_what_is_not_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CorpusError, match="not readable as a tokenizer"):
        load_tokenizer(tmp_path)
    given_tokenizer(tmp_path, "</s>")
    for broken in "{", "[]":
        (tmp_path / "tokenizer_config.json").write_text(broken)
        with pytest.raises(CorpusError, match=r"tokenizer_config\.json: not (JSON|a JSON object)"):
            load_tokenizer(tmp_path)


def test_the_bound_of_the_sample_is_what_training_uses() -> None:
    assert module.SAMPLE_BYTES <= 50_000_000

"""Grams are 13 words in a row, or as much Chinese as stands for them, by a definition in plain Python."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predistill.corpus import grams as grams_module
from predistill.corpus.grams import grams

NAMED = ("CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "IDEOGRAPHIC NUMBER")
PARTS = ["the", "Cat", "sat", "on", "don't", "Don’t", "2015", "3.5", "--", "…", "É", "ñu", "e\u0301", "한국", "İ", "𐐀b"]
PARTS += ["春", "眠，", "不", "の", "ｶ", "〇", "𠀀", "A春", "10月", "、", "_", "\ufffd", "\U0010ffff"]
SPACES = [" ", "\n", "  ", "\t", "\u3000", "\u00a0", ""]


def units_of(text: str) -> list[tuple[str, int]]:
    """Each word or ideograph, and how many halves of a word it is."""
    units: list[tuple[str, int]] = []
    word = ""
    for character in text + " ":
        ideograph = unicodedata.name(character, "").startswith(NAMED) and unicodedata.category(character)[0] in "LN"
        if word and (character.isspace() or ideograph):
            units.append((word, 2))
            word = ""
        if ideograph:
            units.append((character, 1))
        elif unicodedata.category(character)[0] in "LMN":
            word += character.lower()[0]
    return units


def grams_of(text: str) -> list[tuple[str, ...]]:
    units = units_of(text)
    found = []
    for start in range(len(units)):
        halves = 0
        for stop in range(start, len(units)):
            halves += units[stop][1]
            if halves >= 26:
                found.append(tuple(unit for unit, _ in units[start : stop + 1]))
                break
    return found


def hashes_of(texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in texts]
    for hash_G, text_G in grams(texts):
        assert (np.diff(text_G) >= 0).all()
        for each, text in zip(hash_G.tolist(), text_G.tolist(), strict=True):
            found[text].append(each)
    return found


long_text = st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from(SPACES)), max_size=60).map(
    lambda parts: "".join(part + space for part, space in parts)
)


@given(st.lists(long_text, max_size=6), st.sampled_from([40, 1 << 15]))
def test_each_gram_of_the_definition_has_a_hash_of_its_own_in_its_place(texts: list[str], piece_chars: int) -> None:
    grams_module._powers(grams_module.UNIT_BASE), grams_module._powers(grams_module.CHARACTER_BASE)
    longest = max((len(word) for text in texts for word in text.split()), default=0)
    with pytest.MonkeyPatch.context() as patch:
        if longest < 40:  # a longer word would be cut
            patch.setattr(grams_module, "PIECE_CHARS", piece_chars)
        found = hashes_of(texts)
    hash_of: dict[tuple[str, ...], int] = {}
    for text, hashes in zip(texts, found, strict=True):
        expected = grams_of(text)
        assert len(hashes) == len(expected)
        for gram, each in zip(expected, hashes, strict=True):
            assert hash_of.setdefault(gram, each) == each
    assert len(set(hash_of.values())) == len(hash_of)


def test_a_gram_is_13_words_or_26_ideographs_and_no_less() -> None:
    words = [f"word{number}" for number in range(13)]
    characters = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少床前明月光疑是"[:26]
    assert [len(each) for each in hashes_of([" ".join(words), " ".join(words[:12])])] == [1, 0]
    assert [len(each) for each in hashes_of([characters, characters[:25]])] == [1, 0]
    assert [len(each) for each in hashes_of([" ".join(words[:10]) + characters[:6], " ".join(words[:10])])] == [1, 0]


def test_case_and_punctuation_do_not_count_and_order_does() -> None:
    plain = "it was the best of times it was the worst of times"
    written = "“It was the BEST of times; it was\n\nthe worst of (times)…"
    (one,), (two,), (swapped,) = hashes_of(
        [plain + " it", written + " It!", plain.replace("best of", "of best") + " it"]
    )
    assert one == two != swapped


def test_no_gram_goes_from_one_text_into_the_next() -> None:
    words = [f"word{number}" for number in range(20)]
    for cut in range(20):
        halves = [" ".join(words[:cut]), " ".join(words[cut:])]
        assert [len(each) for each in hashes_of(halves)] == [max(0, cut - 12), max(0, 20 - cut - 12)]


def test_windows_that_differ_by_little_have_hashes_of_their_own() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 10, size=200_000)
    (hashes,) = hashes_of([" ".join(map(str, numbers.tolist()))])
    windows = np.lib.stride_tricks.sliding_window_view(numbers, 13) @ 10 ** np.arange(13)
    assert len(hashes) == len(windows)
    assert len(np.unique(hashes)) == len(np.unique(windows))

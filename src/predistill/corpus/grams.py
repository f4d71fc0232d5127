"""Grams of texts: 13 words in a row, as GPT-3 counted them (Brown et al. 2020, appendix C), each known by 64 bits.

A word is what white space parts, in lower case, and of its characters only letters, marks and digits. Chinese and
Japanese have no spaces: there each character is a unit of its own and counts as half a word. A gram goes from its first
unit to where the 13 words are full, so what begins alike and goes on alike for so long has a gram in common. Thirteen
characters would be too few: at that length unlike articles share dates, titles and famous verses (docs/formats.md).

A unit's hash is a polynomial in its characters, a gram's one in its units, both modulo 2^64 with spread coefficients:
a given pair of different grams has one hash with a chance of about 2^-64.
"""

# C characters  U units  G grams
from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["GRAM_WORDS", "Grams", "grams"]

GRAM_WORDS = 13
PIECE_CHARS = 1 << 15  # what is under way at once stays in the processor's cache

WORD_HALVES = 2
GRAM_HALVES = GRAM_WORDS * WORD_HALVES
NOTHING, SPACE, LETTER, IDEOGRAPH = range(4)
# Kana and ideographs; planes 2 and 3 are theirs alone, and no plane behind them has a letter.
IDEOGRAPHS = (
    (0x3005, 0x3007),
    (0x3041, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
)
FIRST_OF_IDEOGRAPHS, LAST_CODE = 0x20000, 0x40000

CHARACTER_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
UNIT_BASE = 0xD1342543DE82EF95

UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]


class Grams(NamedTuple):
    """Hashes of grams, and the number of the text that each stands in, ascending."""

    hash_G: UInt64s
    text_G: Int64s


class _Units(NamedTuple):
    hash_U: UInt64s
    halves_U: Int64s
    text_U: Int64s

    def followed_by(self, other: _Units) -> _Units:
        return _Units(
            np.concatenate([self.hash_U, other.hash_U]),
            np.concatenate([self.halves_U, other.halves_U]),
            np.concatenate([self.text_U, other.text_U]),
        )

    def behind(self, count: int) -> _Units:
        return _Units(self.hash_U[count:], self.halves_U[count:], self.text_U[count:])


_NO_UNITS = _Units(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))


def grams(texts: Sequence[str]) -> Iterator[Grams]:
    """Every gram of every one of `texts`, piece by piece; none goes from one text into the next. A word above 32,768
    characters is cut."""
    begins = np.cumsum([0, *(len(text) + 1 for text in texts)])
    units = _NO_UNITS
    for begin, code_C, kind_C in _pieces("\n".join(texts)):
        units = units.followed_by(_units(code_C, kind_C, begins - begin))
        whole, done = _grams(units)
        yield whole
        units = units.behind(done)


def _grams(units: _Units) -> tuple[Grams, int]:
    """The grams of `units`, and how many of these begin one: those behind them need what follows."""
    count = len(units.hash_U)
    halves_U = np.concatenate([[0], np.cumsum(units.halves_U)])
    done = int(np.searchsorted(halves_U, halves_U[-1] - GRAM_HALVES, side="right"))
    if halves_U[-1] == count * WORD_HALVES:
        stop_G = np.arange(GRAM_WORDS, GRAM_WORDS + done)
    else:
        stop_G = np.searchsorted(halves_U, halves_U[:done] + GRAM_HALVES)
    power, inverse = _powers(UNIT_BASE)
    sum_U = np.concatenate([np.zeros(1, np.uint64), np.cumsum(units.hash_U * power[:count], dtype=np.uint64)])
    hash_G = (sum_U[stop_G] - sum_U[:done]) * inverse[:done]
    within = units.text_U[:done] == units.text_U[stop_G - 1]
    return Grams(hash_G[within], units.text_U[:done][within]), done


def _units(code_C: Int64s, kind_C: npt.NDArray[np.uint8], begins: Int64s) -> _Units:
    """The units of a piece; `begins`: where each text begins, counted from the piece."""
    kept_C = kind_C != NOTHING
    inner = begins[(begins > 0) & (begins < len(code_C))]
    kept = np.cumsum(np.add.reduceat(kept_C, [0, *inner], dtype=np.int64))
    code_C, kind_C = code_C[kept_C], kind_C[kept_C]
    begins_C = kind_C == IDEOGRAPH
    begins_C[:1] |= kind_C[:1] == LETTER
    begins_C[1:] |= (kind_C[1:] == LETTER) & (kind_C[:-1] != LETTER)
    start_U = np.flatnonzero(begins_C)
    if not len(start_U):
        return _NO_UNITS
    _, value = _characters()
    power, inverse = _powers(CHARACTER_BASE)
    hash_U = np.add.reduceat(value.take(code_C, mode="clip") * power[: len(code_C)], start_U) * inverse[start_U]
    halves_U = np.where(kind_C[start_U] == IDEOGRAPH, 1, WORD_HALVES)
    first_text = np.searchsorted(begins, 0, side="right") - 1
    return _Units(_mixed(hash_U), halves_U, first_text + np.searchsorted(kept, start_U, side="right"))


def _pieces(text: str) -> Iterator[tuple[int, Int64s, npt.NDArray[np.uint8]]]:
    """Where each piece of `text` begins, its characters and their kinds. It ends in front of white space or of an
    ideograph, if there is one."""
    kind, _ = _characters()
    start = 0
    while start < len(text):
        data = text[start : start + PIECE_CHARS].encode("utf-32-le", "surrogatepass")
        code_C = np.frombuffer(data, np.dtype("<u4")).astype(np.int64)
        kind_C = kind.take(code_C, mode="clip")
        if start + len(code_C) < len(text):
            parts_C = (kind_C == SPACE) | (kind_C == IDEOGRAPH)
            stop = len(code_C) - 1 - int(parts_C[::-1].argmax())
            if stop and parts_C[stop]:
                code_C, kind_C = code_C[:stop], kind_C[:stop]
        yield start, code_C, kind_C
        start += len(code_C)


@cache
def _characters() -> tuple[npt.NDArray[np.uint8], UInt64s]:
    """Of each character its kind, and the value that stands for it in a hash: that of its lower case."""
    kind = np.zeros(LAST_CODE + 1, np.uint8)
    lower = np.arange(LAST_CODE + 1, dtype=np.uint64)
    for code in range(FIRST_OF_IDEOGRAPHS):
        character = chr(code)
        if character.isspace():
            kind[code] = SPACE
        elif unicodedata.category(character)[0] in "LMN":
            kind[code] = LETTER
            lower[code] = ord(character.lower()[0])
    for first, last in IDEOGRAPHS:
        kind[first : last + 1][kind[first : last + 1] == LETTER] = IDEOGRAPH
    kind[FIRST_OF_IDEOGRAPHS:LAST_CODE] = IDEOGRAPH
    return kind, np.where(kind >= LETTER, _mixed(lower), np.uint64(0))


@cache
def _powers(base: int) -> tuple[UInt64s, UInt64s]:
    """base^0, base^1, ... modulo 2^64, and their inverses; as many as a piece has characters or units."""
    count = PIECE_CHARS + GRAM_HALVES
    inverse = pow(base, -1, 1 << 64)
    power, inverted = (np.full(count, each, np.uint64) for each in (base, inverse))
    power[0] = inverted[0] = 1
    return np.cumprod(power, dtype=np.uint64), np.cumprod(inverted, dtype=np.uint64)


def _mixed(number: UInt64s) -> UInt64s:
    """Each number spread over 64 bits (the finaliser of SplitMix64: Steele, Lea and Flood 2014)."""
    number = number + np.uint64(CHARACTER_BASE)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))

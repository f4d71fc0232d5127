"""Numbers as a reader wants them: few digits, true minus signs, units that do not break off their line."""

from __future__ import annotations

import math

__all__ = ["count", "duration", "in_words", "nats", "percent", "signed", "signed_percent", "size"]

_MINUS, _NARROW = "\N{MINUS SIGN}", "\N{NARROW NO-BREAK SPACE}"
_SMALL = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
)  # fmt: skip


def in_words(number: int) -> str:
    """A small number as a word: 8 -> eight."""
    return _SMALL[number] if 0 <= number < len(_SMALL) else f"{number:,}"


def count(number: float) -> str:
    """Three digits and a letter: 819200 -> 819k, 1000000 -> 1M, 1536 -> 1.54k."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """`148 s`, `12 min`, `3.4 h`."""
    if seconds < 300:
        return f"{seconds:.0f}{_NARROW}s"
    return f"{seconds / 60:.0f}{_NARROW}min" if seconds < 6000 else f"{seconds / 3600:.1f}{_NARROW}h"


def nats(value: float, digits: int = 3) -> str:
    """A loss or a divergence."""
    return f"{value:.{digits}f}".replace("-", _MINUS)


def signed(value: float, digits: int = 3) -> str:
    """A difference, its sign always shown; a rounded nothing has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if math.isclose(float(text), 0.0) else text.replace("-", _MINUS)


def percent(share: float, digits: int = 1) -> str:
    """A fraction in per cent."""
    return f"{share * 100:.{digits}f}{_NARROW}%".replace("-", _MINUS)


def signed_percent(share: float, digits: int = 1) -> str:
    """A difference of fractions or a relative one, in per cent, its sign always shown."""
    return f"{signed(share * 100, digits)}{_NARROW}%"


def size(number: float) -> str:
    """Bytes: 51600000 -> 51.6 MB."""
    for limit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= limit:
            return f"{number / limit:.1f}\N{NO-BREAK SPACE}{name}"
    return f"{number:.0f}\N{NO-BREAK SPACE}B"

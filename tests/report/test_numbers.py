from __future__ import annotations

import pytest

from predistill.report.numbers import count, duration, in_words, percent, signed, signed_percent, size


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1536, "1.54k"),
        (819_200, "819k"),
        (999_936, "1M"),
        (1_500_000, "1.5M"),
        (1e11, "100B"),
        (2e13, "20T"),
    ],
)
def test_a_count_has_three_digits_and_a_letter(number: float, text: str) -> None:
    assert count(number) == text


def test_a_duration_is_in_the_unit_one_would_say() -> None:
    said = [duration(seconds).replace("\N{NARROW NO-BREAK SPACE}", " ") for seconds in (3.2, 148, 720, 12_240)]
    assert said == ["3 s", "148 s", "12 min", "3.4 h"]


def test_a_difference_shows_its_sign_unless_it_rounds_to_nothing() -> None:
    assert [signed(x) for x in (0.25, -0.25, 0.0, -0.0001)] == ["+0.250", "\N{MINUS SIGN}0.250", "0.000", "0.000"]


def test_a_share_is_in_per_cent() -> None:
    assert percent(0.0163) == "1.6\N{NARROW NO-BREAK SPACE}%"


def test_a_difference_in_per_cent_shows_its_sign() -> None:
    said = [signed_percent(x).replace("\N{NARROW NO-BREAK SPACE}", " ") for x in (0.016, -0.0104, 0.00004)]
    assert said == ["+1.6 %", "\N{MINUS SIGN}1.0 %", "0.0 %"]


def test_bytes_and_small_numbers_are_said_as_one_would() -> None:
    said = [size(number).replace("\N{NO-BREAK SPACE}", " ") for number in (512, 920_000, 51_600_000, 2e9)]
    assert said == ["512 B", "920.0 kB", "51.6 MB", "2.0 GB"]
    assert [in_words(number) for number in (1, 8, 13, 14, 2000)] == ["one", "eight", "thirteen", "14", "2,000"]

"""costs/: what capturing a store took, a file a writer. Stores made of others carry theirs along, once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from predistill.files import parse_sealed_json
from predistill.store.place import Place

__all__ = ["carry_costs", "total_cost"]


def total_cost(place: Place) -> dict[str, float]:
    """{"seconds", "cpu_seconds", "tokens"} of all writers together; empty where nothing was noted."""
    total: dict[str, float] = {}
    for data in _files(place):
        try:
            cost = parse_sealed_json(data)
        except ValueError:  # `verify` tells
            continue
        for name, value in cost.items():
            if isinstance(value, int | float):
                total[name] = total.get(name, 0) + value
    return total


def carry_costs(sources: Iterable[Place], to: Place) -> None:
    """Write the costs of `sources` to `to`; two sources that are parts of one capture bring the same files."""
    carried: dict[bytes, Any] = dict.fromkeys(data for place in sources for data in _files(place))
    for number, data in enumerate(carried):
        to.put(f"costs/{number:05d}.json", data)


def _files(place: Place) -> list[bytes]:
    return [place.read(f"costs/{name}") for name in place.names("costs")]

"""The failures of a run, found while they happen: a pure function of the lines of metrics.jsonl, with a sentence each.

finding.py    what is found: the kinds, and a finding
window.py     trailing windows, by their median
steps.py      what the steps tell: numbers that are not finite, spikes, divergence, KL against LM, stalls
heldout.py    what the held-out lines tell: a plateau, the LM baseline at equal tokens, calibration
watching.py   the recipe's choice, and all of it together
"""

from __future__ import annotations

from predistill.training.watch.finding import KINDS, Finding, Kind
from predistill.training.watch.watching import Watch, WatchChoice

__all__ = ["KINDS", "Finding", "Kind", "Watch", "WatchChoice"]

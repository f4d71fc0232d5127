"""Hypothesis without deadlines: a busy machine is not a bug."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("corpus", deadline=None)
settings.load_profile("corpus")

"""What one does with a store beside writing and reading it: look into it, mend it, join, hand on."""

from __future__ import annotations

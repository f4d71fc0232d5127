"""Students: named sizes, models built from scratch, and their Hugging Face export. `presets` needs no torch."""

from predistill.students.presets import PRESETS, Preset

__all__ = ["PRESETS", "Preset"]

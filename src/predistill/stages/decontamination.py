"""What `prepare` leaves out because it is in a task file, and what is said of it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from predistill.corpus.grams import GRAM_WORDS
from predistill.corpus.overlap import task_grams

__all__ = ["Decontamination", "decontamination_notes"]


class Decontamination:
    """Training documents that share 13 words in a row with one of the task files `sources`: left out, and counted.

    Raises `CorpusError` for a file that cannot be used.
    """

    def __init__(self, sources: str | Path | Sequence[str | Path]) -> None:
        listed = [sources] if isinstance(sources, str | Path) else sources
        self._grams, self._files = task_grams(listed)
        self._documents: Counter[int] = Counter()
        self.documents = 0
        self.bytes = 0

    @contextmanager
    def saved(self, folder: Path) -> Iterator[Path]:
        """Where the processes that tokenise find the grams; it is gone behind the `with`."""
        place = folder / "task_grams"
        self._grams.save(place)
        try:
            yield place
        finally:
            shutil.rmtree(place)

    def leave_out(self, text: bytes, files_met: Sequence[int]) -> None:
        """Count a training document that has met task files."""
        self.documents += 1
        self.bytes += len(text)
        self._documents.update(files_met)

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        files = [{**asdict(file), "documents": self._documents[number]} for number, file in enumerate(self._files)]
        return {
            "words": GRAM_WORDS,
            "grams": len(self._grams),
            "documents": self.documents,
            "bytes": self.bytes,
            "files": files,
        }


def decontamination_notes(facts: dict[str, Any]) -> list[str]:
    """What a manifest's `decontaminated` tells the user."""
    shared = f"share {facts['words']} words in a row with a task file"
    met = sorted((file for file in facts["files"] if file["documents"]), key=lambda file: -file["documents"])
    counts = ", ".join(f"{file['documents']:,} with {file['name']}" for file in met)
    notes = [f"Left out {facts['documents']:,} training documents ({facts['bytes']:,} bytes) that {shared}: {counts}."]
    if not met:
        notes = [f"No training document {shared.replace('share', 'shares')}: none was left out."]
    if short_rows := sum(file["short_rows"] for file in facts["files"]):
        rows = sum(file["rows"] for file in facts["files"])
        notes.append(f"{short_rows:,} of {rows:,} task rows are shorter than that, and would not be found.")
    return notes

"""Write the generated table of docs/objective.md again: from the table's head to the end of its list of refusals.

python docs/write_tables.py        (`make docs`)
"""

from __future__ import annotations

from pathlib import Path

from predistill.objective.table import objective_table

DOCUMENT = Path(__file__).with_name("objective.md")


def main() -> None:
    table = objective_table()
    text = DOCUMENT.read_text(encoding="utf-8")
    start = text.index(table.splitlines()[0])
    lines = text[start:].splitlines(keepends=True)
    old = "".join(lines[: _end(lines)])
    DOCUMENT.write_text(text[:start] + table + text[start + len(old) :], encoding="utf-8")


def _end(lines: list[str]) -> int:
    """The first line that is neither a row, nor a numbered refusal, nor empty between them."""
    last = 0
    for number, line in enumerate(lines):
        if line.startswith("|") or line.split(".")[0].isdigit():
            last = number + 1
        elif line.strip():
            break
    return last


if __name__ == "__main__":
    main()

"""`python -m predistill`, which is how torchrun starts it."""

from __future__ import annotations

from predistill.cli import main

if __name__ == "__main__":
    main()

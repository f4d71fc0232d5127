"""The teacher store: next-token distributions of whole corpus rows, compressed and checksummed (docs/formats.md)."""

from predistill.store.grids import GRIDS, Grid
from predistill.store.layout import is_complete, read_permutation
from predistill.store.reader import Store
from predistill.store.rows import OPTIONAL_FIELDS, RowTargets
from predistill.store.writer import StoreWriter

__all__ = ["GRIDS", "OPTIONAL_FIELDS", "Grid", "RowTargets", "Store", "StoreWriter", "is_complete", "read_permutation"]

"""The teacher store: next-token distributions of whole corpus rows, compressed and checksummed (docs/formats.md)."""

from predistill.store.claims import rows_begun
from predistill.store.decode import finish
from predistill.store.grids import GRIDS, Grid
from predistill.store.layout import is_complete, read_permutation
from predistill.store.raw import RawRows
from predistill.store.reader import Store
from predistill.store.rows import OPTIONAL_FIELDS, RowTargets
from predistill.store.shared import SharedWriter
from predistill.store.writer import StoreComplete, StoreWriter

__all__ = [
    "GRIDS",
    "OPTIONAL_FIELDS",
    "Grid",
    "RawRows",
    "RowTargets",
    "SharedWriter",
    "Store",
    "StoreComplete",
    "StoreWriter",
    "finish",
    "is_complete",
    "read_permutation",
    "rows_begun",
]

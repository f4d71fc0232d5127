"""Marks on tokens: which labels are counted, and which tokens close a document, carried in the ids' high bits.

While a corpus is made, ids and marks are one uint32 a token, so that what is cut, sorted and joined stays together; on
disk they are two files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["CLOSES", "COUNTED", "MARKED_DTYPE", "ids_and_marks", "joined", "mask_path"]

COUNTED, CLOSES = 1, 2  # of the mask file's bytes
MARKED_DTYPE = np.dtype("<u4")
MARK_SHIFT = 30

UInt32s = npt.NDArray[np.uint32]
UInt8s = npt.NDArray[np.uint8]


def mask_path(token_path: Path) -> Path:
    """Where the marks of a split's tokens lie."""
    return token_path.with_suffix(".mask.bin")


def joined(ids: npt.NDArray[Any], marks: UInt8s) -> UInt32s:
    """Ids and marks as one number a token."""
    return ids.astype(MARKED_DTYPE) | marks.astype(MARKED_DTYPE) << np.uint32(MARK_SHIFT)


def ids_and_marks(marked: UInt32s, id_dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], UInt8s]:
    """What was `joined`: ids in the dtype of the token file, and a byte of marks a token."""
    return (marked & np.uint32((1 << MARK_SHIFT) - 1)).astype(id_dtype), (marked >> MARK_SHIFT).astype(np.uint8)

"""Other people's stores behind one class each: their own writers and readers, by path. Not a benchmark itself.

$PREDISTILL_PEERS names the folder of their checkouts: Megatron-LM/, DistillKit/, sampled-knowledge-distillation/ (see
peers.py). Nothing of theirs is in this project. A class writes rows in its constructor; then

  path, bytes     the file it wrote, and its bytes on disk
  positions, entries   of the rows that were written, as it keeps them
  read()          what their reader gives for the whole file: the work that is timed
  decoded()       the same as pairs of ids and log-probabilities, a pair a row
  stored()        what the file holds, as arrays: what a flipped bit may change

T positions of a row  K kept entries
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from peers import DISTILLKIT, MEGATRON, _checkout, _module_at, _standing_in, _Stub
from store_data import DRAWS, Arrays
from torch import Tensor

SAMPLED_KD = _checkout("almogtavor/sampled-knowledge-distillation")
MEGATRON_WORDS = 2**17
SENTINEL = -1e3  # Megatron's log-probability of padding
ID_BITS = 17  # of the sampled store
UNIQUE_DRAWS = 12  # of 50 at a position: the sampled store's own setting


class PeerStore(Protocol):
    path: Path
    bytes: int
    positions: int
    entries: int

    def read(self) -> Any: ...
    def stored(self) -> list[npt.NDArray[Any]]: ...


class MegatronTar:
    """A tar of zstd(torch.save), a member an iteration, here one of `together` rows; fp16; ids of 17 bits."""

    def __init__(self, folder: Path, rows: Sequence[Arrays], *, together: int, k: int, p: float | None) -> None:
        saving, self._reading = _megatron()
        folder.mkdir(parents=True)
        self.path, self.positions, self.entries = folder / f"cp0_dp0__{len(rows) - 1}.tar", 0, 0
        saver = object.__new__(saving.LogitsSaverHooks)  # its constructor asks a running training about itself
        saver.p, saver.min_k, saver._topp_kept_counts, saver._pending_writes = p, 1, [], OrderedDict()
        for number, batch in enumerate(batches(rows, together)):
            values = torch.from_numpy(np.stack([row["logprob"][:, :k] for row in batch], axis=1))
            ids = torch.from_numpy(np.stack([row["ids"][:, :k] for row in batch], axis=1)).long()
            ids %= MEGATRON_WORDS  # it refuses a larger vocabulary: this lets it run on one, with wrong ids
            if p is not None:
                values, ids = saver._apply_topp_truncation(values, ids)
            saving.get_current_iteration = lambda number=number: number
            low, high = saving.pack_indices(ids)
            saver._buffer_iteration([values.half()], [low], [high])
            self.positions += values.shape[0] * values.shape[1]
            self.entries += int((values > SENTINEL).sum())
        saver._write_batched_tar(str(self.path), saver._pending_writes, json.dumps({"hash": "0" * 32}).encode())
        self.bytes = self.path.stat().st_size

    def read(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        entries = self._reading.iter_logprobs_tar_entries(str(self.path))
        return [self._reading.decode_logprobs_payload(entry.data) for entry in entries]

    def decoded(self) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        pairs = [(ids[0][:, b], values[0][:, b]) for values, ids in self.read() for b in range(ids[0].shape[1])]
        return [(ids.numpy(), values.float().numpy()) for ids, values in pairs]

    def stored(self) -> list[npt.NDArray[Any]]:
        return [array for pair in self.decoded() for array in pair]


DISTILLKIT_FORMS: dict[str, dict[str, Any]] = {
    "exact": {"exact_k": None, "exact_dtype": "float16", "polynomial_terms": None},
    "recommended": {"exact_k": 16, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"]},
    "budget": {"exact_k": 1, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, "sqrt"]},
}


class DistillKitParquet:
    """Parquet of lists of bytes, every position k entries.

    read() is its decompressor alone, of `together` rows at once, on tensors in memory.
    """

    def __init__(
        self, folder: Path, rows: Sequence[Arrays], *, together: int, k: int, vocabulary: int, form: str
    ) -> None:
        compression, common = _distillkit()
        settings = DISTILLKIT_FORMS[form]
        config = compression.DistributionQuantizationConfig(
            d=vocabulary, k=k, term_dtype="float32", residual_bins=[], delta_encoding=False,
            **{**settings, "exact_k": settings["exact_k"] or k},
        )  # fmt: skip
        self._compressor = compression.LogprobCompressor(config)
        self._batches = [
            self._compressor.compress_from_sparse(
                torch.from_numpy(np.stack([row["ids"][:, :k] for row in batch])).long(),
                torch.from_numpy(np.stack([row["logprob"][:, :k] for row in batch])),
            )
            for batch in batches(rows, together)
        ]
        with common.StreamingParquetWriter(
            str(folder), common.compressed_logit_schema(), file_max_rows=1000, queue_maxsize=1000
        ) as writer:
            for number, row in enumerate(rows):
                packed = self._batches[number // together]
                lists = {name: tensor[number % together].tolist() for name, tensor in packed.items()}
                writer.write({"input_ids": row["tokens"][1:].tolist(), **lists})
        self.path = folder / "data_0.parquet"
        self.positions = sum(len(row["ids"]) for row in rows)
        self.entries = self.positions * k
        self.codec_bytes = sum(tensor.shape[2] for tensor in self._batches[0].values()) * self.positions
        self.bytes = self._parquet_bytes()

    def read(self) -> list[tuple[Tensor, Tensor]]:
        return [self._compressor.decompress_to_sparse(packed) for packed in self._batches]

    def decoded(self) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        pairs = [pair for ids, values in self.read() for pair in zip(ids, values, strict=True)]
        return [(ids.numpy(), values.float().numpy()) for ids, values in pairs]

    def stored(self) -> list[npt.NDArray[Any]]:
        import pyarrow.parquet as pq

        table = pq.read_table(self.path)
        columns = [table[name].combine_chunks() for name in ("compressed_logprobs", "bytepacked_indices")]
        return [column.flatten().flatten().to_numpy(zero_copy_only=False) for column in columns]

    def _parquet_bytes(self) -> int:
        """Of the two columns: the tokens beside them are not counted."""
        import pyarrow.parquet as pq

        metadata = pq.read_metadata(self.path)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        return sum(c.total_compressed_size for c in columns if not c.path_in_schema.startswith("input_ids"))


class SampledRecords:
    """torch.save of lists of rows: 3 bytes an entry, always 12 entries. read() is its decoder alone, from memory."""

    def __init__(self, folder: Path, rows: Sequence[Arrays], *, vocabulary: int) -> None:
        self._module = _sampled_kd()
        self._vocabulary, self.entries, self.draws_kept, self._packed, self._ids = vocabulary, 0, 0, [], []
        cache = self._module.ShardedTeacherOfflineCache(folder)
        for row in rows:
            drawn = np.repeat(np.maximum(row["s_ids"], 0).ravel(), row["s_count"].ravel())
            samples = torch.from_numpy(drawn.reshape(-1, DRAWS)).long()
            ids, counts = self._module.topU_unique_counts_per_row(samples, U=UNIQUE_DRAWS)
            packed = self._module.build_fixedU_packed_rows(ids, counts, U=UNIQUE_DRAWS, N=DRAWS, V=vocabulary)
            self.entries += sum(len(kept) for kept in ids)
            self.draws_kept += sum(int(kept.sum()) for kept in counts)
            self._packed.append(packed)
            self._ids += ids
            tokens = torch.from_numpy(row["tokens"])
            about = {"U": UNIQUE_DRAWS, "N": DRAWS, "id_bits": 17, "prob_bits": 7, "sentinel_id": vocabulary}
            entropy = torch.from_numpy(row["entropy"] / np.log(vocabulary) * 255).round().to(torch.uint8)
            item = {"valid_mask": torch.ones(len(samples), dtype=torch.bool), "topk_m": 12, "H_hat_u8": entropy}
            key = self._module.TeacherOfflineCache.key_from_ids(tokens)
            cache.write_item(key, {"key": key, **item, "rs": {**about, "packed": packed}})
        cache.finalize()
        self.path = folder / "shard_000000.pt"
        self.bytes, self.positions = self.path.stat().st_size, sum(len(row["ids"]) for row in rows)

    def read(self) -> list[tuple[Tensor, Tensor]]:
        size, decode = UNIQUE_DRAWS * 3, self._module.decode_ids_probs_from_block
        blocks = [packed[start : start + size] for packed in self._packed for start in range(0, len(packed), size)]
        return [decode(block, UNIQUE_DRAWS, self._vocabulary) for block in blocks]

    def losses(self, draws: int) -> dict[str, float]:
        """Shares of the draws that are gone (12 ids at most), and of ids that come back as others (17 bits)."""
        aliased = self._vocabulary > 2**ID_BITS and sum(int((ids >= 2**ID_BITS).sum()) for ids in self._ids)
        return {
            "draws_lost": round(1 - self.draws_kept / draws, 4),
            "ids_aliased": round(aliased / self.entries, 5),
        }

    def stored(self) -> list[npt.NDArray[Any]]:
        return [item["rs"]["packed"].numpy() for item in torch.load(self.path)]


def batches(rows: Sequence[Arrays], together: int) -> list[Sequence[Arrays]]:
    return [rows[start : start + together] for start in range(0, len(rows), together)]


@lru_cache
def _megatron() -> tuple[Any, Any]:
    """Its writer's and its reader's files, without the training around them."""
    folder = MEGATRON.folder / "megatron/training/distillation"
    names = (
        "megatron", "megatron.core", "megatron.core.models", "megatron.core.models.common",
        "megatron.core.models.common.language_module", "megatron.core.models.common.language_module.language_module",
        "megatron.core.msc_utils", "megatron.core.num_microbatches_calculator", "megatron.training",
        "megatron.training.utils", "megatron.training.distillation",
    )  # fmt: skip
    stubs = {name: _Stub(name) for name in names}
    here = SimpleNamespace(makedirs=lambda path, exist_ok: Path(path).mkdir(parents=True, exist_ok=exist_ok))
    stubs["megatron.core.msc_utils"].MultiStorageClientFeature = SimpleNamespace(is_enabled=lambda: False)
    stubs["megatron.core.msc_utils"].maybe_msc = SimpleNamespace(os=here)
    with _standing_in(*stubs.values()):
        reading = _module_at(folder / "utils_logits.py", name="megatron.training.distillation.utils_logits")
        with _standing_in(reading):
            return _module_at(folder / "logits_saver.py"), reading


@lru_cache
def _distillkit() -> tuple[Any, Any]:
    if (folder := str(DISTILLKIT.folder)) not in sys.path:
        sys.path.append(folder)
    import distillkit.compression as compression

    with _standing_in(_Stub("datasets")):  # of which its Parquet writer uses nothing
        import distillkit.sample_common as common

    return compression, common


@lru_cache
def _sampled_kd() -> Any:
    if (folder := str(SAMPLED_KD.folder)) not in sys.path:
        sys.path.append(folder)
    import sampledkd.training.offline_cache as offline_cache

    return offline_cache

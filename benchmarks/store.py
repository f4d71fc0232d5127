"""What the store costs on real targets, beside other people's stores of the same positions: bytes, error, time.

    PREDISTILL_GGUF=SmolLM2-135M-Instruct.Q4_1.gguf PREDISTILL_PEERS=FOLDER python benchmarks/store.py --work FOLDER

The targets come from store_data.py, which makes them first where FOLDER has none (20 CPU minutes; the rest takes 6).
Writes benchmarks/results/store.json. What cannot be had (the teacher, a peer) is left out and named.

  bytes            all streams, frames, checksums and index.bin. Apart stand label, entropy and standard deviation,
                   as no peer holds them, and `once_a_store`: files whose size is the vocabulary's or the manifest's,
                   not the text's. `everything` counts all of it
  floor            order-0 entropy of the values of a stream over all rows: what a perfect coder of single values needs
  grid_error       of a log-probability on its grid; read_error has the shift to the kept mass in it as well, nats
  kl               of the kept part, both sides normalised over it, nats a position
  speed            entries a CPU second, one thread, page cache warm, our checksums included; medians over the rounds, in
                   which the case that begins moves on; ratios are taken within a round. Twice: with the allocator as
                   it comes, which the targets go by, and with predistill's setting of it, which spares page faults
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import store_peers as peers
import torch
from peers import DISTILLKIT, MEGATRON, Origin
from record import write_record
from store_cases import CUTS, built, facts_of, fidelity, kl, row_targets, sizes, split
from store_data import MIXTURE_FACTS, MIXTURE_WORDS, ROW_LEN, TEXTS, Arrays, targets_of, work_folder
from store_reading import flips, flips_of, random_row, reader_memory

from predistill.memory import keep_freed_memory
from predistill.store import RowTargets, Store, StoreWriter

ROUNDS = 5
ROWS_A_READ = 4  # of 2,048 positions: a batch
FEW = 4  # rows, where a peer is slow and its bytes a position are fixed


VOCABULARY = {"smollm2": 49_152, "mixture": MIXTURE_WORDS}


class Work(NamedTuple):
    """Something to time, and how many entries it is worth."""

    run: Callable[[], object]
    entries: int


def main() -> None:
    torch.set_num_threads(1)
    work = work_folder()
    rows = {name: targets_of(name, work) for name in VOCABULARY}
    content: dict[str, Any] = {
        "command": "python benchmarks/store.py --work FOLDER",
        "load": round(os.getloadavg()[0], 1),
        "row_len": ROW_LEN,
        "rounds": ROUNDS,
        "mixture": MIXTURE_FACTS,
        "peers": {origin.checkout: version_of(origin) for origin in (MEGATRON, DISTILLKIT, peers.SAMPLED_KD)},
        "teachers": dict.fromkeys(VOCABULARY, "absent: $PREDISTILL_GGUF names no file"),
    }
    works: dict[str, dict[str, Work]] = {}
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        folder = Path(temporary)
        for name, arrays in rows.items():
            if arrays is not None:
                works[name] = {}
                content["teachers"][name] = measured(folder / name, arrays, name, works[name])
        for allocator in ("as it comes", "keep_freed_memory"):
            if allocator != "as it comes":
                keep_freed_memory()
            for name in works:
                speeds = entries_a_second(works[name])
                content["teachers"][name]["speed"][allocator] = {work: speed_of(work, speeds) for work in speeds}
        first = next(name for name, arrays in rows.items() if arrays is not None)
        content["bit_flips"] = bit_flips(folder / "flips", rows[first][:2], VOCABULARY[first])
        content["reader_memory"] = reader_memory(folder / first / "top-.95-100", folder)
    write_record("store", {**content, "targets": answers(content)})


def measured(folder: Path, rows: list[Arrays], teacher: str, works: dict[str, Work]) -> dict[str, Any]:
    """One teacher: every cut in our store and in the peers'. What there is to time joins `works`."""
    cases, vocabulary = {}, VOCABULARY[teacher]
    for name, cut in CUTS.items():
        targets = [row_targets(arrays, row, cut) for row, arrays in enumerate(rows)]
        store = built(folder / name, targets, rows, cut, vocabulary)
        case = {**sizes(store, targets), **fidelity(store, targets)}
        works[name] = Work(lambda store=store: read_all(store), store.totals["entries"])
        with StoreWriter(folder / f"{name}-encode", manifest=facts_of(cut), permutation=store.permutation) as writer:
            some = targets[:: max(1, len(targets) // 8)]
            works[f"{name}: encode"] = Work(
                lambda some=some, writer=writer: [writer.packed(int(t.row_ids[0]), 0, t) for t in some],
                sum(len(t.ids_E) for t in some),
            )
        if name == "top-.95-100":
            case["random_row_2048"] = random_row(store)
            short = [piece for arrays in rows[: len(rows) // 4] for piece in split(arrays, ROW_LEN // 8)]
            targets_256 = [row_targets(arrays, row, cut) for row, arrays in enumerate(short)]
            case["random_row_256"] = random_row(built(folder / f"{name}-256", targets_256, short, cut, vocabulary))
        case["peers"] = beside(folder / f"{name}-peers", name, rows, targets, vocabulary, works)
        cases[name] = case
    facts = {
        "vocabulary": vocabulary,
        "characters_of_text": TEXTS[teacher].characters,
        "rows": len(rows),
        "positions": len(rows) * ROW_LEN,
        "loss_nats": round(float(-np.mean([arrays["label"] for arrays in rows])), 3),
        "entropy_nats": round(float(np.mean([arrays["entropy"] for arrays in rows])), 3),
    }
    return {**facts, "cases": cases, "speed": {}}


def read_all(store: Store) -> None:
    for start in range(0, len(store), ROWS_A_READ):
        store.rows(np.arange(start, min(start + ROWS_A_READ, len(store))), fields=())


def beside(
    folder: Path, case: str, rows: list[Arrays], targets: list[RowTargets], vocabulary: int, works: dict[str, Work]
) -> dict[str, Any]:
    """What the peers' stores of the same positions hold; their readers join the works to time."""
    found = {}
    for name, make in peer_stores(folder, case, rows, vocabulary).items():
        try:
            peer = make()
        except (ImportError, AttributeError, OSError) as error:
            found[name] = {"absent": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            continue
        some = targets[: peer.positions // ROW_LEN]
        found[name] = {
            "rows": len(some),
            "entries_a_position": round(peer.entries / peer.positions, 2),
            "bytes_a_position": round(peer.bytes / peer.positions, 2),
            "bytes_an_entry": round(peer.bytes / peer.entries, 3),
        }
        if isinstance(peer, peers.SampledRecords):
            found[name] |= peer.losses(sum(int(t.count_E.sum()) for t in some if t.count_E is not None))
        else:
            found[name] |= errors_of(peer, some)
        if isinstance(peer, peers.DistillKitParquet):
            found[name]["codec_bytes_a_position"] = round(peer.codec_bytes / peer.positions, 2)
        works[f"{case}: {name}"] = Work(peer.read, peer.entries)
    return found


def peer_stores(
    folder: Path, case: str, rows: list[Arrays], vocabulary: int
) -> dict[str, Callable[[], peers.MegatronTar | peers.DistillKitParquet | peers.SampledRecords]]:
    def distillkit(k: int, form: str) -> peers.DistillKitParquet:
        return peers.DistillKitParquet(folder / form, rows[:FEW], k=k, vocabulary=vocabulary, form=form)

    if case == "sampled-50":
        return {"sampled-KD": lambda: peers.SampledRecords(folder / "sampled", rows[: FEW // 2], vocabulary=vocabulary)}
    cut, lower = CUTS[case], "DistillKit budget" if CUTS[case].k == 50 else "DistillKit recommended"
    assert cut.k is not None
    k = cut.k
    tar = {"Megatron-LM": lambda: peers.MegatronTar(folder / "tar", rows, k=k, p=cut.p)}
    if case == "top-.95-100":  # it has no top-p: its files are those of top-100
        return {**tar}
    return {
        **tar,
        "DistillKit exact": lambda: distillkit(k, "exact"),
        lower: lambda: distillkit(k, lower.removeprefix("DistillKit ")),
    }


def errors_of(peer: peers.MegatronTar | peers.DistillKitParquet, targets: list[RowTargets]) -> dict[str, float]:
    """Of the entries that the cut keeps, which each peer has first in every position."""
    true, read, lengths = [], [], []
    for t, (_, values_TK) in zip(targets, peer.decoded(), strict=True):
        assert t.logprob_E is not None
        kept_TK = np.arange(values_TK.shape[1]) < t.length_N[:, None]
        true_TK = np.zeros(kept_TK.shape, np.float32)
        true_TK[kept_TK] = t.logprob_E
        kept_TK &= (
            values_TK > peers.SENTINEL / 2
        )  # Megatron's sums are of float32: once in a while it keeps an entry less
        true.append(true_TK[kept_TK])
        read.append(values_TK[kept_TK])
        lengths.append(kept_TK.sum(axis=1))
    true_E, read_E, length_N = map(np.concatenate, (true, read, lengths))
    start_N = np.cumsum(length_N) - length_N
    return {"read_error": round(float(np.abs(true_E - read_E).max()), 6), "kl": kl(true_E, read_E, start_N)}


def entries_a_second(works: dict[str, Work]) -> dict[str, list[float]]:
    """Entries a CPU second of this process, a number a round."""
    names = list(works)
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS + 1):
        begin = number * len(names) // (ROUNDS + 1)
        for name in names[begin:] + names[:begin]:
            began = time.process_time()
            works[name].run()
            took = time.process_time() - began
            if number:
                speeds[name].append(works[name].entries / took)
    return speeds


def speed_of(work: str, speeds: dict[str, list[float]]) -> dict[str, float]:
    """Medians; of a peer also how many times as fast our reader of the same cut is."""
    case, _, who = work.partition(": ")
    found = {"million_entries_a_second": round(statistics.median(speeds[work]) / 1e6, 2)}
    if who not in ("", "encode"):
        ratios = (ours / theirs for ours, theirs in zip(speeds[case], speeds[work], strict=True))
        found["ours_over_it"] = round(statistics.median(ratios), 2)
    return found


def bit_flips(folder: Path, rows: list[Arrays], vocabulary: int) -> dict[str, Any]:
    """What one flipped bit does to a reader of everything: ours, and the peers' own."""
    cut = CUTS["top-.95-100"]
    targets = [row_targets(arrays, row, cut) for row, arrays in enumerate(rows)]
    built(folder / "ours", targets, rows, cut, vocabulary)
    found: dict[str, Any] = {"ours": flips_of(folder / "ours", times=1000)}
    for case, wanted in {
        "top-.95-100": "Megatron-LM",
        "top-100": "DistillKit exact",
        "sampled-50": "sampled-KD",
    }.items():
        try:
            peer = peer_stores(folder / case, case, rows, vocabulary)[wanted]()
        except (ImportError, AttributeError, OSError) as error:
            found[wanted] = f"absent: {error}"
            continue
        found[wanted] = flips([peer.path], peer.stored, times=300, refusal=Exception)
    return found


def version_of(origin: Origin) -> str:
    try:
        return origin.version
    except ImportError as error:
        return f"absent: {error}"


def answers(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The questions that the record must answer. `case` is where the figures stand."""
    table = []

    def ask(case: str, what: str, value: float | None, bound: float, *, least: bool = False) -> None:
        met = None if value is None else bool(value >= bound if least else value <= bound)
        table.append(
            {"case": case, "what": what, "value": value, "at_least" if least else "at_most": bound, "met": met}
        )

    for name, teacher in content["teachers"].items():
        if isinstance(teacher, str):
            continue
        cases = teacher["cases"]
        nucleus, whole, drawn = cases["top-.95-100"], cases["top-100"], cases["sampled-50"]
        if name == "smollm2":
            ask(f"{name} top-.95-100", "bytes an entry, all streams", nucleus["bytes_an_entry"], 2.2)
        ask(f"{name} top-.95-100", "error on the grid, nats", nucleus["grid_error"], 1 / 128)
        ask(
            f"{name} sampled-50",
            "bytes an entry, lossless",
            drawn["bytes_an_entry"] if drawn["lossless"] else None,
            1.5,
        )
        for cut in ("top-.95-100", "top-100", "top-.95-50"):
            share = of_peer(cases[cut], "Megatron-LM", "bytes_a_position")
            ask(f"{name} {cut}", "share of Megatron-LM's bytes", share, 0.60)
        for what, key in {"codec": "codec_bytes_a_position", "Parquet": "bytes_a_position"}.items():
            share = of_peer(whole, "DistillKit exact", key)
            ask(f"{name} top-100", f"share of DistillKit's exact {what}", share, 0.50 if name == "smollm2" else 0.46)
        speed = teacher["speed"]["as it comes"]
        for cut in ("top-.95-100", "top-100", "top-.95-50"):
            ask(f"{name} {cut}", "million entries a second", speed[cut]["million_entries_a_second"], 33, least=True)
            ratio = speed.get(f"{cut}: Megatron-LM", {}).get("ours_over_it")
            ask(f"{name} {cut}", "speed over Megatron-LM's", ratio, 2.5, least=True)
        for form in ("exact", "recommended"):
            ratio = speed.get(f"top-100: DistillKit {form}", {}).get("ours_over_it")
            ask(f"{name} top-100", f"speed over DistillKit's, {form}", ratio, 15, least=True)
        for row_len in (2048, 256):
            for what in ("fetched_and_checked_ms", "decoded_ms"):
                took = nucleus[f"random_row_{row_len}"][what]
                ask(f"{name} top-.95-100", f"random row of {row_len:,}: {what}", took, 1.0)
    memory = content["reader_memory"]
    own, mapped = (
        memory["10 TB"]["10,000 rows"][k] - memory["0.1 TB"]["10,000 rows"][k] for k in ("own_mib", "mapped_mib")
    )
    ask("10 TB", "MiB of own memory more than at 0.1 TB", round(own, 1), 32)
    ask("10 TB", "MiB of mapped memory more than at 0.1 TB", round(mapped, 1), 32)
    ask("bit flips", "silently wrong reads", content["bit_flips"]["ours"]["silent"], 0)
    return table


def of_peer(case: dict[str, Any], peer: str, key: str) -> float | None:
    """Our bytes a position over a peer's."""
    theirs = case["peers"].get(peer, {}).get(key)
    return None if theirs is None else round(case["bytes_a_position"] / theirs, 3)


if __name__ == "__main__":
    main()

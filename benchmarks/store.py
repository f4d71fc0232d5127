"""What the store costs on real targets, beside other people's stores of the same positions: bytes, error, time.

    PREDISTILL_GGUF=SmolLM2-135M-Instruct.Q4_1.gguf PREDISTILL_PEERS=FOLDER python benchmarks/store.py --work FOLDER

The targets come from store_data.py, which makes them first where FOLDER has none (20 CPU minutes; the rest takes 6).
Writes benchmarks/results/store.json. With --plain-malloc only the speeds, where the C library gives freed memory back,
as it does in the peers' own programs: benchmarks/results/store_plain_malloc.json. What cannot be had (the teacher, a
peer) is left out and named.

  bytes            all streams, frames, checksums and index.bin. Apart stand label, entropy and standard deviation,
                   as no peer holds them, and `once_a_store`: files whose size is the vocabulary's or the manifest's,
                   not the text's. `everything` counts all of it
  floor            order-0 entropy of the values of a stream over all rows: what a perfect coder of single values needs
  grid_error       of a log-probability on its grid; read_error has the shift to the kept mass in it as well, nats
  kl               of the kept part, both sides normalised over it, nats a position
  speed            entries a CPU second, one thread, page cache warm, our checksums included. One row read by a call,
                   and four: DistillKit's speed hangs on it. Medians over the rounds, each of which begins with another
                   case; ratios are taken within a round
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
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
TOGETHER = (1, 4)  # rows read by one call
FEW = 4  # rows, where a peer is slow and its bytes a position are fixed
MEGATRON_TAR, SAMPLED_KD = "Megatron-LM", "sampled-KD"


VOCABULARY = {"smollm2": 49_152, "mixture": MIXTURE_WORDS}


class Work(NamedTuple):
    """Something to time, and how many entries it is worth."""

    case: str
    who: str
    together: int  # rows
    run: Callable[[], object]
    entries: int


def main() -> None:
    plain = "--plain-malloc" in sys.argv
    if plain:
        sys.argv.remove("--plain-malloc")
    else:
        keep_freed_memory()  # as our program does; the peers are faster for it, and do not do it
    torch.set_num_threads(1)
    work = work_folder()
    rows = {name: targets_of(name, work) for name in VOCABULARY}
    content: dict[str, Any] = {
        "command": "python benchmarks/store.py --work FOLDER" + " --plain-malloc" * plain,
        "load": round(os.getloadavg()[0], 1),
        "row_len": ROW_LEN,
        "rounds": ROUNDS,
        "mixture": MIXTURE_FACTS,
        "peers": {origin.checkout: version_of(origin) for origin in (MEGATRON, DISTILLKIT, peers.SAMPLED_KD)},
        "teachers": dict.fromkeys(VOCABULARY, "absent: $PREDISTILL_GGUF names no file"),
    }
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        folder = Path(temporary)
        for name, arrays in rows.items():
            if arrays is not None:
                content["teachers"][name] = measured(folder / name, arrays, name)
        if plain:
            speed = {name: t["speed"] for name, t in content.pop("teachers").items() if not isinstance(t, str)}
            write_record("store_plain_malloc", {**content, "speed": speed})
            return
        first = next(name for name, arrays in rows.items() if arrays is not None)
        content["bit_flips"] = bit_flips(folder / "flips", rows[first][:2], VOCABULARY[first])
        content["reader_memory"] = reader_memory(folder / first / "top-.95-100", folder)
    write_record("store", {**content, "targets": answers(content)})


def measured(folder: Path, rows: list[Arrays], teacher: str) -> dict[str, Any]:
    """One teacher: every cut in our store and in the peers'; then all of them are read in turns."""
    cases, works, vocabulary = {}, [], VOCABULARY[teacher]
    for name, cut in CUTS.items():
        targets = [row_targets(arrays, row, cut) for row, arrays in enumerate(rows)]
        store = built(folder / name, targets, rows, cut, vocabulary)
        case = {**sizes(store, targets), **fidelity(store, targets)}
        works += [Work(name, "ours", n, partial(read_all, store, n), store.totals["entries"]) for n in TOGETHER]
        works.append(encoding(folder / f"{name}-encode", name, targets, store))
        if name == "top-.95-100":
            case["random_row_2048"] = random_row(store)
            short = [piece for arrays in rows[: len(rows) // 4] for piece in split(arrays, ROW_LEN // 8)]
            targets_256 = [row_targets(arrays, row, cut) for row, arrays in enumerate(short)]
            case["random_row_256"] = random_row(built(folder / f"{name}-256", targets_256, short, cut, vocabulary))
        case["peers"] = {}
        for peer in peers_of(name):
            for n in TOGETHER:
                try:
                    store_of_peer = written(folder / f"{name}-{n}", name, peer, rows, vocabulary, together=n)
                except (ImportError, AttributeError, OSError) as error:
                    case["peers"][peer] = {"absent": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
                    continue
                case["peers"][peer] = sizes_of_peer(store_of_peer, targets)
                works.append(Work(name, peer, n, store_of_peer.read, store_of_peer.entries))
        cases[name] = case
    facts = {
        "vocabulary": vocabulary,
        "characters_of_text": TEXTS[teacher].characters,
        "rows": len(rows),
        "positions": len(rows) * ROW_LEN,
        "loss_nats": round(float(-np.mean([arrays["label"] for arrays in rows])), 3),
        "entropy_nats": round(float(np.mean([arrays["entropy"] for arrays in rows])), 3),
    }
    return {**facts, "cases": cases, "speed": speeds_of(works)}


def read_all(store: Store, together: int) -> None:
    for start in range(0, len(store), together):
        store.rows(np.arange(start, min(start + together, len(store))), fields=())


def encoding(folder: Path, case: str, targets: list[RowTargets], store: Store) -> Work:
    some = targets[:: max(1, len(targets) // 8)]
    with StoreWriter(folder, manifest=facts_of(CUTS[case]), permutation=store.permutation) as writer:
        return Work(
            case,
            "ours, encoding",
            1,
            lambda: [writer.packed(int(t.row_ids[0]), 0, t) for t in some],
            sum(len(t.ids_E) for t in some),
        )


def peers_of(case: str) -> tuple[str, ...]:
    """DistillKit has no top-p: its files are those of top-100."""
    return {
        "top-.95-100": (MEGATRON_TAR,),
        "top-100": (MEGATRON_TAR, "DistillKit exact", "DistillKit recommended"),
        "top-.95-50": (MEGATRON_TAR, "DistillKit exact", "DistillKit budget"),
        "sampled-50": (SAMPLED_KD,),
    }[case]


def written(
    folder: Path, case: str, peer: str, rows: list[Arrays], vocabulary: int, *, together: int
) -> peers.MegatronTar | peers.DistillKitParquet | peers.SampledRecords:
    folder /= peer
    if peer == SAMPLED_KD:
        return peers.SampledRecords(folder, rows[: FEW // 2], vocabulary=vocabulary)
    p, k = CUTS[case]
    assert k is not None
    if peer == MEGATRON_TAR:
        return peers.MegatronTar(folder, rows, together=together, k=k, p=p)
    form = peer.removeprefix("DistillKit ")
    return peers.DistillKitParquet(folder, rows[:FEW], together=together, k=k, vocabulary=vocabulary, form=form)


def sizes_of_peer(
    peer: peers.MegatronTar | peers.DistillKitParquet | peers.SampledRecords, targets: list[RowTargets]
) -> dict[str, Any]:
    some = targets[: peer.positions // ROW_LEN]
    found: dict[str, Any] = {
        "rows": len(some),
        "entries_a_position": round(peer.entries / peer.positions, 2),
        "bytes_a_position": round(peer.bytes / peer.positions, 2),
        "bytes_an_entry": round(peer.bytes / peer.entries, 3),
    }
    if isinstance(peer, peers.SampledRecords):
        return found | peer.losses(sum(int(t.count_E.sum()) for t in some if t.count_E is not None))
    if isinstance(peer, peers.DistillKitParquet):
        found["codec_bytes_a_position"] = round(peer.codec_bytes / peer.positions, 2)
    return found | errors_of(peer, some)


def errors_of(peer: peers.MegatronTar | peers.DistillKitParquet, targets: list[RowTargets]) -> dict[str, float]:
    """Of the entries that the cut keeps, which each peer has first in every position."""
    true, read, lengths = [], [], []
    for t, (_, values_TK) in zip(targets, peer.decoded(), strict=True):
        assert t.logprob_E is not None
        kept_TK = np.arange(values_TK.shape[1]) < t.length_N[:, None]
        true_TK = np.zeros(kept_TK.shape, np.float32)
        true_TK[kept_TK] = t.logprob_E
        kept_TK &= values_TK > peers.SENTINEL / 2  # Megatron sums in float32: rarely it keeps an entry less
        true.append(true_TK[kept_TK])
        read.append(values_TK[kept_TK])
        lengths.append(kept_TK.sum(axis=1))
    true_E, read_E, length_N = map(np.concatenate, (true, read, lengths))
    start_N = np.cumsum(length_N) - length_N
    return {"read_error": round(float(np.abs(true_E - read_E).max()), 6), "kl": kl(true_E, read_E, start_N)}


def speeds_of(works: list[Work]) -> dict[str, Any]:
    """Million entries a CPU second of this process; of a peer also how many times as fast ours is, of the same cut."""
    rates: list[list[float]] = [[] for _ in works]
    for number in range(ROUNDS + 1):
        begin = number * len(works) // (ROUNDS + 1)
        for i in [*range(begin, len(works)), *range(begin)]:
            began = time.process_time()
            works[i].run()
            took = time.process_time() - began
            if number:
                rates[i].append(works[i].entries / took)
    found: dict[str, Any] = {f"{n} at once": {case: {} for case in CUTS} for n in TOGETHER}
    for work, rate in zip(works, rates, strict=True):
        line = {"million_entries_a_second": round(statistics.median(rate) / 1e6, 2)}
        if not work.who.startswith("ours"):
            ours = next(i for i, w in enumerate(works) if w[:3] == (work.case, "ours", work.together))
            line["ours_over_it"] = round(statistics.median(a / b for a, b in zip(rates[ours], rate, strict=True)), 2)
        found[f"{work.together} at once"][work.case][work.who] = line
    return found


def bit_flips(folder: Path, rows: list[Arrays], vocabulary: int) -> dict[str, Any]:
    """What one flipped bit does to a reader of everything: ours, and the peers' own."""
    cut = CUTS["top-.95-100"]
    targets = [row_targets(arrays, row, cut) for row, arrays in enumerate(rows)]
    built(folder / "ours", targets, rows, cut, vocabulary)
    found: dict[str, Any] = {"ours": flips_of(folder / "ours", times=1000)}
    for case, peer in {"top-.95-100": MEGATRON_TAR, "top-100": "DistillKit exact", "sampled-50": SAMPLED_KD}.items():
        try:
            theirs = written(folder / case, case, peer, rows, vocabulary, together=1)
        except (ImportError, AttributeError, OSError) as error:
            found[peer] = {"absent": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            continue
        found[peer] = flips([theirs.path], theirs.stored, times=300, refusal=Exception)
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
        for at_once, speed in teacher["speed"].items():
            for cut in ("top-.95-100", "top-100", "top-.95-50"):
                where = f"{name} {cut}, {at_once}"
                ask(where, "million entries a second", speed[cut]["ours"]["million_entries_a_second"], 33, least=True)
                for peer in peers_of(cut):
                    ratio = speed[cut].get(peer, {}).get("ours_over_it")
                    ask(where, f"speed over {peer}'s", ratio, 2.5 if peer == MEGATRON_TAR else 15, least=True)
        for row_len in (2048, 256):
            for what in ("fetched_and_checked", "decoded"):
                took = nucleus[f"random_row_{row_len}"][what]["ms"]
                ask(f"{name} top-.95-100", f"random row of {row_len:,}, ms: {what}", took, 1.0)
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

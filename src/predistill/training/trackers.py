"""A run's metrics in TensorBoard, trackio or Weights & Biases, beside metrics.jsonl, which stays the record.

TensorBoard and trackio show what metrics.jsonl holds, every step once, however the run was stopped, resumed or sent
back to a checkpoint, and whether or not it was tracked from its beginning. W&B is appended to: it takes a step once,
and leaves out what comes again.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import google_crc32c

from predistill.errors import RecipeError, did_you_mean
from predistill.files import write_atomic
from predistill.runs import Run

__all__ = ["TRACKERS", "Tracker", "open_trackers", "scalars", "tracked"]

TRACKERS = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}  # name -> package
PROJECT = "predistill"  # under which trackio and W&B gather runs

_OF_STEP = frozenset(
    {"tokens", "loss", "lm", "kd", "kl", "alpha", "lr", "grad_norm", "tokens_per_s", "stall_s"}
)  # "seconds" is no curve anyone reads

Record = Mapping[str, Any]


class Tracker(Protocol):
    """Where metrics go beside metrics.jsonl."""

    def log(self, record: Record) -> None:
        """Take in a line of metrics.jsonl, or a finding of the watch."""

    def close(self) -> None:
        """Write what is left."""


def open_trackers(names: Iterable[str], run: Run, *, config: Mapping[str, Any], resume_step: int) -> list[Tracker]:
    """The trackers of `names`, each of which has the records of `run` up to `resume_step` when this returns.

    `config` is what they show as the run's settings. Raises RecipeError for an unknown name, a missing package, or a
    tracker that does not start.
    """
    _check(names := list(dict.fromkeys(names)))
    opened: list[Tracker] = []
    for name in names:
        try:
            opened.append(_opened(name, run, config, resume_step))
        except Exception as error:
            for tracker in opened:
                tracker.close()
            raise RecipeError(f"--track {name} does not start: {error}. Mend that, or train without it.") from error
    return opened


def _opened(name: str, run: Run, config: Mapping[str, Any], resume_step: int) -> Tracker:
    if name == "tensorboard":
        return _TensorBoard(run, resume_step)
    return _Trackio(run, config, resume_step) if name == "trackio" else _WandB(run, config)


@contextmanager
def tracked(names: Iterable[str], path: Path, *, config: Mapping[str, Any]) -> Iterator[Callable[[Record], None]]:
    """Yields `log(record)` for the run that is being made at `path`; names and packages are checked at once.

    The first record opens the trackers, for until then there may be no run. One that fails later is left out, with a
    line on standard error: training goes on.
    """
    _check(names := list(dict.fromkeys(names)))
    trackers: list[Tracker] | None = None

    def log(record: Record) -> None:
        nonlocal trackers
        if trackers is None:
            trackers = open_trackers(names, Run(path), config=config, resume_step=record["step"] - 1) if names else []
        for tracker in tuple(trackers):
            try:
                tracker.log(record)
            except Exception as error:
                trackers.remove(tracker)
                with suppress(Exception):
                    tracker.close()
                name = type(tracker).__name__.strip("_")
                print(f"{path}: {name} failed and is left out from here ({error}).", file=sys.stderr)

    try:
        yield log
    finally:
        for tracker in trackers or ():
            try:
                tracker.close()
            except Exception as error:  # what was trained is whole all the same
                print(f"{path}: {type(tracker).__name__.strip('_')} did not close ({error}).", file=sys.stderr)


def scalars(record: Record) -> dict[str, float]:
    """Curve -> value: `train/loss` and the like of a step, `heldout/loss_nats` of an evaluation."""
    values = {
        key: float(value) for key, value in record.items() if _is_number(value) and key not in ("step", "seconds")
    }
    if record.get("kind") == "step":
        return {key if key == "tokens" else f"train/{key}": value for key, value in values.items() if key in _OF_STEP}
    if record.get("kind") == "heldout":
        behind = f"/{str(record['corpus']).strip('/')}" if "corpus" in record else ""
        return {f"heldout/{key}{behind}": value for key, value in values.items() if key not in ("step", "tokens")}
    return {}


class _TensorBoard:
    """Event files below RUN/tensorboard, one a session and one event a record.

    Written here rather than by SummaryWriter: that one makes an event of every curve's point, keeps the newest in a
    thread, which a kill takes along, and puts the name of the machine into the file's.
    """

    def __init__(self, run: Run, resume_step: int) -> None:
        self._run, self._folder = run, run.path / "tensorboard"
        self._file: BinaryIO | None = None
        self._folder.mkdir(exist_ok=True)
        newest = max(self._folder.glob("events.out.tfevents.*"), default=None)
        self._begin(resume_step, last=0 if newest is None else _last_step(newest))

    def log(self, record: Record) -> None:
        if record.get("kind") == "step" and record["step"] <= self._last:
            self._begin(record["step"] - 1, last=self._last)
        self._write(record)
        self._flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self, resume_step: int, *, last: int) -> None:
        """A new file. TensorBoard forgets what the older ones, which end at step `last`, hold from its first step on;
        what they lack, where a session was not tracked, is written first. None is deleted: a TensorBoard that has it
        open would read no further."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.close()
        self._file = (self._folder / f"events.out.tfevents.{time.time():017.6f}.{os.getpid()}").open("wb")
        first, self._last = min(last, resume_step + 1), resume_step
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._put(Event(wall_time=time.time(), step=first, session_log=SessionLog(status=SessionLog.START)))
        for record in _history(self._run, resume_step):
            if record["step"] >= first:
                self._write(record)
        self._flush()

    def _write(self, record: Record) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        step = int(record["step"])
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(record).items()]
        if "sentence" in record:
            values = [_text("findings", str(record["sentence"]))]
        if record.get("kind") == "step":
            self._last = step
        self._put(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _put(self, event: Any) -> None:
        """One record of a TFRecord file: length, its checksum, data, its checksum."""
        assert self._file is not None
        data: bytes = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.write(b"".join((length, _masked(length), data, _masked(data))))

    def _flush(self) -> None:
        assert self._file is not None
        self._file.flush()


class _Trackio:
    """A run in trackio's own data base on this machine; it is named by its directory."""

    def __init__(self, run: Run, config: Mapping[str, Any], resume_step: int) -> None:
        self._record, self._config = run, dict(config)
        self._anew(resume_step)

    def log(self, record: Record) -> None:
        if record.get("kind") == "step" and record["step"] <= self._last:
            self.close()
            self._anew(record["step"] - 1)
        self._log(record)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):  # stdout may be one JSON object
            self._run.finish()

    def _anew(self, resume_step: int) -> None:
        import trackio

        name = str(self._record.path)
        with redirect_stdout(sys.stderr):
            with suppress(ValueError):  # no such project yet
                for old in trackio.Api().runs(PROJECT):
                    if old.name == name:
                        old.delete()
            self._run = trackio.init(
                project=PROJECT, name=name, config=self._config, embed=False, auto_log_cpu=False, auto_log_gpu=False
            )
        self._last = 0
        for record in _history(self._record, resume_step):
            self._log(record)

    def _log(self, record: Record) -> None:
        if record.get("kind") == "step":
            self._last = int(record["step"])
        self._run.log(_values(record), step=int(record["step"]))


class _WandB:
    """A run of W&B; WANDB_MODE and the other variables of its own say where it goes. Its id is kept with the run."""

    def __init__(self, run: Run, config: Mapping[str, Any]) -> None:
        import wandb

        kept = run.path / "wandb.id"
        if not kept.exists():
            write_atomic(kept, secrets.token_hex(6).encode())
        self._run = wandb.init(
            project=PROJECT,
            name=str(run.path),
            id=kept.read_text(encoding="utf-8"),
            resume="allow",
            dir=run.path,
            config=dict(config),
            settings=wandb.Settings(console="off"),
        )

    def log(self, record: Record) -> None:
        self._run.log(_values(record), step=int(record["step"]))

    def close(self) -> None:
        self._run.finish()


def _check(names: Iterable[str]) -> None:
    for name in names:
        if name not in TRACKERS:
            one_of = ", ".join(TRACKERS)
            raise RecipeError(f"--track {name}: no such tracker{did_you_mean(name, TRACKERS)}. One of {one_of}.")
        if importlib.util.find_spec(TRACKERS[name]) is None:
            raise RecipeError(
                f"--track {name}: the package {TRACKERS[name]} is not installed. "
                "Install it with `pip install 'predistill[track]'`, or train without: metrics.jsonl has it all."
            )


def _history(run: Run, resume_step: int) -> list[Record]:
    """Lines and findings up to a step, in the order of steps."""
    records = [*run.metrics(), *run.findings]
    return sorted((record for record in records if record["step"] <= resume_step), key=lambda record: record["step"])


def _values(record: Record) -> dict[str, Any]:
    return {"finding": str(record["sentence"])} if "sentence" in record else dict(scalars(record))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _masked(data: bytes) -> bytes:
    """CRC-32C, turned and shifted as TFRecord files want it."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _last_step(path: Path) -> int:
    """Of the last whole event of a file; 0 where it has none."""
    from tensorboard.compat.proto.event_pb2 import Event

    data, start, last = path.read_bytes(), 0, b""
    while start + 12 <= len(data):
        end = start + 12 + struct.unpack_from("<Q", data, start)[0]
        if end + 4 > len(data):
            break
        start, last = end + 4, data[start + 12 : end]
    return int(Event.FromString(last).step)


def _text(tag: str, text: str) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()], tensor_shape=shape)
    plugin = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=tag, tensor=tensor, metadata=plugin)

"""What every room's tests share: a small real corpus, a store of the embedded teacher over it, two finished runs.

Everything runs on one thread: the laws here are about bits, and two threads add up in another order.
"""

from __future__ import annotations

import os
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch is loaded, here and in the processes that tests start
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # the console script sets it before Transformers is loaded; so here
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # forks follow
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is loaded, which torch may do at any time

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402

import pytest  # noqa: E402
import zstandard  # noqa: E402

from predistill.assets import sample_path, teacher_path, tokenizer_path  # noqa: E402
from predistill.runs import Run  # noqa: E402
from predistill.stages.prepare import prepare  # noqa: E402
from tests.made import DOCUMENTS, LETTERS, ROW_LEN, Ended, recipe_content  # noqa: E402
from tests.processes import Forks  # noqa: E402
from tests.s3 import S3  # noqa: E402


@pytest.fixture(scope="session")
def sample_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginnings of documents spread over the embedded sample, English and Chinese, as JSON lines."""
    with sample_path().open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read().decode().splitlines()
    texts = [json.loads(line)["text"][:LETTERS] for line in lines[:: len(lines) // DOCUMENTS][:DOCUMENTS]]
    assert any("\u4e00" <= letter <= "\u9fff" for text in texts for letter in text)
    path = tmp_path_factory.mktemp("text") / "sample.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 400 rows of 64 tokens, and a held-out split."""
    out = tmp_path_factory.mktemp("corpus") / "plain"
    prepare(sample_text, out=out, tokenizer=tokenizer_path(), row_len=ROW_LEN, held_out=0.15, processes=1)
    return out


@pytest.fixture(scope="session")
def masked_corpus(sample_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows, with attention inside documents only."""
    out = tmp_path_factory.mktemp("corpus") / "masked"
    prepare(
        sample_text,
        out=out,
        tokenizer=tokenizer_path(),
        row_len=ROW_LEN,
        held_out=0.15,
        processes=1,
        document_mask=True,
    )
    return out


@pytest.fixture(scope="session")
def store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded teacher's distributions over the corpus, top-.95-100, captured without a stop."""
    from predistill.objective import TopPK
    from predistill.stages.capture import capture

    out = tmp_path_factory.mktemp("store") / "top95-100"
    capture(teacher_path(), corpus=corpus, out=out, truncation=TopPK(p=0.95, k=100))
    return out


@pytest.fixture(scope="session")
def lm_run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on text alone, never stopped."""
    from predistill.recipe import read_recipe
    from predistill.stages.train import train

    return train(read_recipe(recipe_content(corpus)), out=tmp_path_factory.mktemp("runs") / "lm")


@pytest.fixture(scope="session")
def pd_run(corpus: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that the store taught, never stopped."""
    from predistill.recipe import read_recipe
    from predistill.stages.train import train

    return train(read_recipe(recipe_content(corpus, store)), out=tmp_path_factory.mktemp("runs") / "pd")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes that run `predistill`, started in milliseconds."""
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server on the loopback; this process and those it starts are pointed to it."""
    server = S3(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.make_bucket()
        yield server
    server.stop()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`predistill ARGV` in this process: what `main` does, without the seconds of a start."""

    from predistill.cli import main

    def run(*argv: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["predistill", *map(str, argv)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        return Ended(code, *capsys.readouterr())

    return run

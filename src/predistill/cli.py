"""The command line: one Typer command a verb; those about runs are in cli_run.py, those of `store` in cli_store.py.
Heavy imports stand inside, so that --help answers at once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from predistill import __version__
from predistill.cli_run import Json, Overwrite, doctor, evaluate, footprint, generate, report, runs, train
from predistill.cli_store import store_app
from predistill.errors import PredistillError, RecipeError, Stopped
from predistill.memory import keep_freed_memory
from predistill.terminal import progress, show, table

__all__ = ["app", "main"]

app = typer.Typer(
    name="predistill",
    help="Pre-training distillation: a small language model learns from a large one's next-token distributions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(store_app, name="store")

SELECT_READS = ("sources", "out", "select", "by", "reference", "seed", "overwrite", "as_json")
TYPER_INTERRUPTED = 130  # the exit code that Typer makes of KeyboardInterrupt

Out = Annotated[Path, typer.Option("--out", help="Directory to write.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"predistill {__version__}")
        raise typer.Exit


def quickstart(
    out: Out = Path("quickstart"),
    text: Annotated[
        Path | None, typer.Option(help="Your own text (txt, md, jsonl, parquet) instead of the sample.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of both students.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole path in minutes: text, teacher, store, two students, evaluation, report."""
    from predistill.stages.quickstart import quickstart as run

    def shown(title: str, unit: str, scale: int = 1) -> Any:
        return progress(title, unit=unit, scale=scale, quiet=as_json)

    result = run(out, text=text, seed=seed, shown=shown)
    show(result, as_json, result["words"])


def prepare(
    context: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(help="txt, md, jsonl(.gz/.zst), parquet, or a data set directory; with --select a corpus."),
    ],
    out: Out,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json, or a directory that holds it.")] = None,
    train_tokenizer: Annotated[
        int | None, typer.Option(help="Train a byte-level BPE of so many words instead.")
    ] = None,
    row_len: Annotated[int, typer.Option(help="Tokens of a row.")] = 256,
    held_out: Annotated[float, typer.Option(help="Share of the documents held out.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of the documents' order, or of a random --select.")] = 0,
    text_field: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    document_mask: Annotated[bool, typer.Option("--document-mask", help="Attention stays within a document.")] = False,
    instruct: Annotated[
        bool,
        typer.Option("--instruct", help="Conversations (messages, or question and solution): responses are counted."),
    ] = False,
    chat_template: Annotated[
        Path | None, typer.Option(help="Jinja2 file to write them with; default: the tokenizer's, or a plain one.")
    ] = None,
    decontaminate: Annotated[
        list[Path] | None,
        typer.Option(
            help="Leave out training documents that share 13 words in a row with this task file (.jsonl, .gz, .zst) "
            "or a folder of such; may be given more than once."
        ),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad documents out, and count them.")] = False,
    processes: Annotated[int | None, typer.Option(help="Worker processes; default: one a core.")] = None,
    select: Annotated[
        float | None, typer.Option(help="Keep this share of a prepared corpus: the best by --by, or at random.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Teacher's store: keep documents it finds likelier than ...")] = None,
    reference: Annotated[str | None, typer.Option(help="... a small reference model's store does.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Text or conversations to corpus rows: tokenised, packed, split, in a fixed random order."""
    from predistill.stages.prepare import prepare as run

    if select is not None or by is not None or reference is not None:
        from predistill.stages.difference import select as run_select

        frac, corpus = _selecting(context)
        with progress("select", unit="bytes", quiet=as_json) as advance:
            summary = run_select(
                corpus,
                out=out,
                frac=frac,
                by=by,
                reference=reference,
                seed=seed,
                overwrite=overwrite,
                on_progress=advance,
            )
        show(summary, as_json, _corpus_words(summary))
        return
    with progress("prepare", unit="bytes", quiet=as_json) as advance:
        summary = run(
            sources,
            out=out,
            tokenizer=tokenizer,
            train_tokenizer=train_tokenizer,
            row_len=row_len,
            held_out=held_out,
            seed=seed,
            text_field=text_field,
            skip_bad=skip_bad,
            document_mask=document_mask,
            instruct=instruct,
            chat_template=chat_template,
            decontaminate=decontaminate or (),
            processes=processes,
            overwrite=overwrite,
            on_progress=advance,
        )
    show(summary, as_json, _corpus_words(summary))


def capture(
    teacher: Annotated[Path, typer.Option(help="Hugging Face directory, .gguf file, or a finished run.")],
    corpus: Annotated[Path, typer.Option(help="Corpus made by `predistill prepare` with the teacher's tokenizer.")],
    out: Annotated[str, typer.Option("--out", help="Directory or URL (s3://...) of the store.")],
    split: Annotated[str, typer.Option(help="train or held_out.")] = "train",
    top_p: Annotated[float | None, typer.Option(help="Keep the smallest set with at least this mass ...")] = None,
    top_k: Annotated[int | None, typer.Option(help="... and at most so many words.")] = None,
    draws: Annotated[int | None, typer.Option(help="Random draws instead, with replacement ...")] = None,
    proposal_temperature: Annotated[
        float | None, typer.Option(help="... from the teacher at this temperature; above 1: more different words.")
    ] = None,
    lse_tau: Annotated[
        float | None, typer.Option(help="Keep the log-sum-exp at this temperature: tempered ghost tails need it.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the teacher: fp32, bf16 or fp16.")] = "fp32",
    device_map: Annotated[str | None, typer.Option(help="Spread a large teacher: auto, balanced, ...")] = None,
    tensor_parallel: Annotated[
        bool, typer.Option("--tensor-parallel", help="Split a large teacher over the ranks of torchrun.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Start so many; more may join from anywhere, with the same words.")] = 1,
    launcher: Annotated[str, typer.Option(help="Where the workers run: local or ray.")] = "local",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of each worker; the same for all of a store.")
    ] = None,
    as_json: Json = False,
) -> None:
    """A teacher's distributions over a corpus, into a store. Run it again after a kill: it goes on where it was."""
    from predistill.stages.capture import capture as run
    from predistill.stages.capture import truncation_from_flags

    truncation = truncation_from_flags(top_p=top_p, top_k=top_k, draws=draws, proposal_temperature=proposal_temperature)
    with progress("capture", unit="rows", quiet=as_json) as advance:
        store = run(
            teacher,
            corpus=corpus,
            out=out,
            truncation=truncation,
            split=split,
            lse_tau=lse_tau,
            dtype=dtype,
            device_map=device_map,
            tensor_parallel=tensor_parallel,
            workers=workers,
            launcher=launcher,
            threads=threads,
            on_progress=advance,
        )
    facts = {**store.totals, "bytes_per_token": store.totals["bytes"] / max(store.totals["positions"], 1)}
    show(facts, as_json, table(facts))


for verb in (quickstart, prepare, capture, train, evaluate, generate, footprint, report, runs, doctor):
    app.command()(verb)


def main() -> None:
    """Run the command line: exit 0 done, 2 the user must change something, 3 stopped and saved, 1 our bug."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(name, "1")  # the bars that are shown are ours
    keep_freed_memory()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; training has a handler of its own
    try:
        app()
    except SystemExit as ended:
        if ended.code != TYPER_INTERRUPTED:
            raise
        _say("Interrupted. What was whole is saved; run the same command again to go on.", of_all=True)
        sys.exit(3)
    except Stopped as stopped:
        _say(str(stopped), of_all=True)
        sys.exit(3)
    except PredistillError as error:
        distributed = sys.modules.get("torch.distributed")
        _say(str(error), of_all=distributed is None or not distributed.is_initialized())
        sys.exit(2)


def _say(words: str, *, of_all: bool) -> None:
    """One sentence on stderr; of what all of torchrun's processes met alike, the first one speaks."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not of_all:
        words = words if rank == "0" else f"Process {rank}: {words}"
        Console(stderr=True, soft_wrap=True).print(words, markup=False, highlight=False)


def _selecting(context: typer.Context) -> tuple[float, Path]:
    """The share and the corpus of `prepare --select`; what it would leave unread is refused."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if context.params["select"] is None:
        raise RecipeError("--by and --reference choose what --select keeps. Give --select FRAC with them.")
    if len(context.params["sources"]) != 1:
        raise RecipeError("--select takes the documents of one prepared corpus. Name one as the source.")
    unread = [name for name in given if name not in SELECT_READS or (name == "seed" and "by" in given)]
    if unread:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unread)
        raise RecipeError(f"{flags}: does not go with --select, which leaves all but the choice as it was prepared.")
    return context.params["select"], context.params["sources"][0]


def _corpus_words(summary: dict[str, Any]) -> str:
    """What a prepared corpus holds, a line a split, and what the user should know of it."""
    lines = [f"{summary['path']}: {summary['tokenizer']['vocab_size']:,} words, rows of {summary['row_len']:,} tokens"]
    for name, split in summary["splits"].items():
        lines.append(
            f"{name:<9} {split['rows']:>9,} rows  {split['documents']:>9,} documents  {split['bytes']:>13,} bytes"
        )
    return "\n".join([*lines, *summary["notes"]])

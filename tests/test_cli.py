"""The command line: exit codes, JSON from every verb on request, sentences for people, and a dry run that is dry."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from predistill import __version__
from predistill.cli import app
from predistill.cli_store import store_app
from predistill.corpus import Corpus
from predistill.errors import Stopped
from predistill.runs import Run
from predistill.store import Store
from predistill.students import PRESETS
from tests.evaluation.ours import write_tasks
from tests.made import STEPS, Ended, files_below, recipe_content
from tests.processes import predistill


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_real_process_exits_0_when_done_and_2_when_the_user_must_change_something(
    lm_run: Run, tmp_path: Path
) -> None:
    done = predistill("generate", lm_run.path, "The ", "--tokens", "3", "--json")
    assert (done.returncode, done.stderr) == (0, "")  # no bar or warning of a library either
    assert json.loads(done.stdout)["prompt"] == "The "
    wrong = predistill("train", tmp_path / "none.yaml", "--out", tmp_path / "run")
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == f"{tmp_path / 'none.yaml'}: no such recipe. Examples are in recipes/nano/."
    assert wrong.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_the_package_s(call: Callable[..., Ended]) -> None:
    assert call("--version") == (0, f"predistill {__version__}\n", "")


def test_a_wrong_option_exits_2_in_words(call: Callable[..., Ended]) -> None:
    ended = call("train", "--frobnicate")
    assert ended.code == 2
    assert "frobnicate" in ended.err
    assert "Traceback" not in ended.err


def test_stopped_and_saved_exits_3(call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stopping(path: Path) -> list[Run]:
        raise Stopped(f"{path}: stopped, saved.")

    monkeypatch.setattr("predistill.runs.find_runs", stopping)
    ended = call("runs", tmp_path)
    assert ended.code == 3
    assert "stopped, saved." in ended.words


def test_an_interrupt_exits_3_in_words(call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_path: Path) -> list[Run]:
        raise KeyboardInterrupt

    monkeypatch.setattr("predistill.runs.find_runs", interrupted)
    ended = call("runs")
    assert ended.code == 3
    assert "run the same command again to go on" in ended.words


def test_our_own_bug_is_not_dressed_up(call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_path: Path) -> list[Run]:
        raise ZeroDivisionError

    monkeypatch.setattr("predistill.runs.find_runs", broken)
    with pytest.raises(ZeroDivisionError):
        call("runs")


def test_every_verb_has_json(call: Callable[..., Ended]) -> None:
    verbs = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    about_runs = {"train", "evaluate", "generate", "footprint", "report", "runs"}
    assert verbs == {"quickstart", "prepare", "capture", "doctor"} | about_runs
    for verb in [*verbs, *(f"store {command.name}" for command in store_app.registered_commands)]:
        assert "--json" in call(*verb.split(), "--help").out, verb


def test_prepare_in_json_and_in_words(call: Callable[..., Ended], sample_text: Path, tmp_path: Path) -> None:
    flags = ("--train-tokenizer", "300", "--row-len", "32", "--held-out", "0.2", "--processes", "1", "--json")
    ended = call("prepare", sample_text, "--out", tmp_path / "c", *flags)
    facts = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert facts["fingerprint"] == Corpus(tmp_path / "c").fingerprint
    again = call("prepare", sample_text, "--out", tmp_path / "c", *flags)
    assert (again.code, again.out) == (2, "")
    assert "--overwrite" in again.words
    words = call("prepare", sample_text, "--out", tmp_path / "c", *flags[:-1], "--overwrite")
    assert words.code == 0
    assert f"{facts['splits']['train']['rows']:,} rows" in words.out


def test_decontaminating_in_json_and_in_words(call: Callable[..., Ended], sample_text: Path, tmp_path: Path) -> None:
    texts = [json.loads(line)["text"] for line in sample_text.read_text(encoding="utf-8").splitlines()]
    (tmp_path / "tasks").mkdir()
    for name, text in (("a", texts[0]), ("b", texts[1])):
        (tmp_path / "tasks" / f"{name}.jsonl").write_text(json.dumps({"passage": text}))
    flags = ("--train-tokenizer", "300", "--held-out", "0", "--processes", "1")
    tasks = ("--decontaminate", tmp_path / "tasks", "--decontaminate", tmp_path / "tasks" / "a.jsonl")
    ended = call("prepare", sample_text, "--out", tmp_path / "c", *flags, *tasks, "--json")
    facts = json.loads(ended.out)
    assert [(file["name"], file["documents"] > 0) for file in facts["decontaminated"]["files"]] == [
        ("a.jsonl", True),
        ("b.jsonl", True),
    ]
    assert facts["splits"]["train"]["documents"] == len(texts) - facts["decontaminated"]["documents"]
    words = call("prepare", sample_text, "--out", tmp_path / "c", *flags, *tasks, "--overwrite").out
    assert f"Left out {facts['decontaminated']['documents']:,} training documents" in " ".join(words.split())
    missing = call("prepare", sample_text, "--out", tmp_path / "d", *flags, "--decontaminate", tmp_path / "none")
    assert missing.code == 2
    assert "Check the path given to --decontaminate." in " ".join(missing.err.split())


def test_selecting_in_json_and_in_words(call: Callable[..., Ended], corpus: Path, store: Path, tmp_path: Path) -> None:
    flags = ("--out", tmp_path / "half", "--select", "0.5", "--seed", "1")
    ended = call("prepare", corpus, *flags, "--json")
    facts = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert facts["fingerprint"] == Corpus(tmp_path / "half").fingerprint
    words = call("prepare", corpus, *flags, "--overwrite").out
    assert f"Kept {facts['selected'][0]['kept']['documents']:,} of" in words
    for wrong, says in (
        (("--by", store), "Give --select FRAC with them."),
        (("--select", "0.5", "--by", store), "--by without --reference"),
        (("--select", "0.5", "--reference", store), "--reference without --by"),
        (("--select", "0.5", "--by", store, "--reference", store), "are one store"),
        (("--select", "0.5", "--by", store, "--reference", store, "--seed", "1"), "--seed: does not go with --select"),
        (("--select", "0.5", "--row-len", "32", "--skip-bad"), "--row-len, --skip-bad: does not go with --select"),
        (("--select", "0.5", "--decontaminate", corpus), "--decontaminate: does not go with --select"),
        ((corpus, "--select", "0.5"), "Name one as the source."),
        (("--select", "2"), "--select 2: give a fraction above 0"),
    ):
        refused = call("prepare", corpus, "--out", tmp_path / "new", *wrong)
        assert (refused.code, refused.out) == (2, ""), wrong
        assert says in refused.words, refused.words
        assert not (tmp_path / "new").exists()


def test_capture_in_json_and_in_words(call: Callable[..., Ended], corpus: Path, lm_run: Run, tmp_path: Path) -> None:
    flags = ("--teacher", lm_run.path, "--corpus", corpus, "--out", tmp_path / "s", "--top-k", "5")
    ended = call("capture", *flags, "--json")
    facts = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert facts["rows"] == len(Corpus(corpus))
    assert facts["bytes_per_token"] == facts["bytes"] / facts["positions"]
    assert f"{facts['rows']:,}" in call("capture", *flags).out


def test_train_in_json_and_in_words(call: Callable[..., Ended], corpus: Path, tmp_path: Path) -> None:
    recipe, out = written(tmp_path, recipe_content(corpus)), tmp_path / "run"
    ended = call("train", recipe, "tokens=1024", "--out", out, "--json")
    facts = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert facts == {"run": str(out), **(Run(out).done or {})}
    assert facts["tokens"] == 1024
    assert call("train", recipe, "tokens=1024", "--out", out).code == 0
    other = call("train", recipe, "tokens=2048", "--out", out, "--json")
    assert (other.code, other.out) == (2, "")
    assert "other recipe: tokens was 1024, now 2048" in other.words
    assert call("train", recipe, "tokens=2048", "--out", out, "--overwrite", "--json").code == 0
    assert Run(out).recipe["tokens"] == 2048


def test_a_run_that_is_tracked_shows_its_metrics_and_one_that_cannot_be_does_not_begin(
    call: Callable[..., Ended], corpus: Path, tmp_path: Path
) -> None:
    recipe, out = written(tmp_path, recipe_content(corpus, tokens=1024)), tmp_path / "run"
    refused = call("train", recipe, "--out", out, "--track", "tensorbord", "--json")
    assert (refused.code, refused.out) == (2, "")
    assert 'did you mean "tensorboard"?' in refused.words
    assert not out.exists()
    ended = call("train", recipe, "--out", out, "--track", "tensorboard", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["run"] == str(out)
    (events,) = (out / "tensorboard").iterdir()
    steps = [line for line in Run(out).metrics() if line["kind"] == "step"]
    assert events.read_bytes().count(b"train/loss") == len(steps) > 0


def test_the_default_run_directory_is_named_by_the_recipe(
    call: Callable[..., Ended], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = written(tmp_path, recipe_content(corpus, tokens=512))
    assert json.loads(call("train", recipe, "name=mine", "--json").out)["run"] == "runs/mine"
    assert Run(tmp_path / "runs" / "mine").done is not None


def test_a_dry_run_tells_the_sizes_and_writes_nothing(
    call: Callable[..., Ended], corpus: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = written(tmp_path, recipe_content(corpus, store))
    places = (tmp_path, corpus, store)
    before = [files_below(place) for place in places]
    monkeypatch.chdir(tmp_path)
    for flags in ((), ("--out", tmp_path / "run"), ("--overwrite",)):
        facts = json.loads(call("train", recipe, "--dry-run", "--json", *flags).out)
        assert facts["parameters"] == PRESETS["nano-xs"].parameters(Corpus(corpus).vocab_size)
        assert facts["steps"] == STEPS
        assert facts["flops"] > 0
        assert facts["memory_optimizer_bytes"] == 8 * facts["parameters"]
        assert facts["memory_bytes"] == sum(facts[name] for name in facts if re.fullmatch("memory_.+_bytes", name))
        assert all(not isinstance(value, dict | list) for name, value in facts.items() if name != "recipe")
        assert facts["store_bytes"] == Store(store).totals["bytes"]
        assert facts["recipe"]["student"]["preset"] == "nano-xs"
        words = call("train", recipe, "--dry-run", *flags).out
        for name in ("parameters", "flops", "memory bytes", "store bytes", f"{facts['parameters']:,}"):
            assert name in words
    assert [files_below(place) for place in places] == before
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_dry_run_is_on_as_many_accelerators_of_that_kind_as_asked(
    call: Callable[..., Ended], corpus: Path, tmp_path: Path
) -> None:
    recipe = written(tmp_path, recipe_content(corpus))
    flags = ("--ranks", "2", "--accelerator", "A100", "--mfu", "0.5")
    facts = json.loads(call("train", recipe, "--dry-run", "--json", *flags).out)
    assert facts["memory_optimizer_bytes"] == 4 * facts["parameters"]
    assert facts["days_2"] == pytest.approx(facts["flops"] / (2 * 0.5 * 312e12 * 86_400))
    assert facts["rank_tokens_per_s"] == pytest.approx(0.5 * 312e12 * facts["tokens"] / facts["flops"])
    assert "A100, 50% of 312 TFLOP/s" in call("train", recipe, "--dry-run", *flags).out
    ended = call("train", recipe, "--dry-run", "--accelerator", "abacus")
    assert ended.code == 2
    assert ended.words.startswith('--accelerator is "abacus". One of h100 pcie')


def test_a_dry_run_refuses_what_a_run_would(call: Callable[..., Ended], corpus: Path, tmp_path: Path) -> None:
    recipe = written(tmp_path, recipe_content(corpus, loss={"kind": "kdl"}))
    ended = call("train", recipe, "--dry-run", "--json")
    assert (ended.code, ended.out) == (2, "")
    assert ended.words.startswith(f'{recipe}: loss.kind is "kdl"; did you mean "kld"?')


def test_evaluate_generate_report_and_runs_in_json_and_in_words(
    call: Callable[..., Ended], lm_run: Run, pd_run: Run, tmp_path: Path
) -> None:
    for run in (lm_run, pd_run):
        shutil.copytree(run.path, tmp_path / "runs" / run.path.name)
    lm, pd = tmp_path / "runs" / "lm", tmp_path / "runs" / "pd"
    for path in (lm, pd):
        ended = call("evaluate", path, "--teacher", pd_run.path, "--limit", "4", "--json")
        assert (ended.code, ended.err) == (0, "")
        assert json.loads(ended.out) == Run(path).evaluation
    words = call("evaluate", lm, "--teacher", pd_run.path, "--limit", "4").out
    assert "teacher kl nats" in words
    assert "in-context copying" in words
    assert "[" not in words  # the bins are for --json

    written_text = json.loads(call("generate", lm, "The ", "--tokens", "9", "--json").out)
    assert written_text["prompt"] == "The "
    assert call("generate", lm, "The ", "--tokens", "9").out.rstrip("\n") == ("The " + written_text["text"]).rstrip(
        "\n"
    )

    page = Path(json.loads(call("report", tmp_path / "runs", "--json").out)["page"])
    assert page == tmp_path / "runs" / "report.html"
    assert page.read_text(encoding="utf-8").lstrip().startswith("<!")
    assert call("report", tmp_path / "runs", "--out", tmp_path / "other.html").out.strip() == str(
        tmp_path / "other.html"
    )

    listed = json.loads(call("runs", tmp_path / "runs", "--json").out)["runs"]
    assert [(line["run"], line["step"], line["steps"], line["state"]) for line in listed] == [
        (str(lm), STEPS, STEPS, "done"),
        (str(pd), STEPS, STEPS, "done"),
    ]
    (pd / "DONE").unlink()
    assert f"{pd}  {STEPS} of {STEPS} steps  not finished" in call("runs", tmp_path / "runs").out
    assert json.loads(call("runs", tmp_path / "none", "--json").out) == {"runs": []}


def test_tasks_in_json_and_in_words_and_exit_2_for_what_cannot_be_asked(
    call: Callable[..., Ended], lm_run: Run, tmp_path: Path
) -> None:
    shutil.copytree(lm_run.path, tmp_path / "lm")
    data = write_tasks(tmp_path / "eval", "piqa", "winogrande")
    asking = ("evaluate", tmp_path / "lm", "--tasks", "piqa, winogrande,", "--data", data, "--limit", "4")
    ended = call(*asking, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == Run(tmp_path / "lm").evaluation
    tasks = json.loads(ended.out)["tasks"]
    ended = call(*asking)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines] == ["piqa", "winogrande", "mean"]
    assert re.fullmatch(r"piqa +\d+\.\d% ± \d+\.\d%  acc_norm +4 of 6 rows", lines[0])
    assert f" {tasks['suites']['piqa,winogrande']['mean']:.1%} ± " in lines[2]
    both = call(*asking[:3], "heldout,piqa", *asking[4:])
    assert both.code == 0
    assert both.out.index("in-context copying") < both.out.index("piqa ")
    for option, told in (
        (("--tasks", "piqua"), '--tasks: no task "piqua"; did you mean "piqa"?'),
        (("--tasks", "boolq"), f"{data}: no file boolq.validation.jsonl (or"),
        (("--corpus", data), "--corpus is for the held-out suite. Add heldout to --tasks."),
        (("--baseline", tmp_path / "none"), f"{tmp_path / 'none'}: not a run"),
    ):
        ended = call(*asking, *option)
        assert (ended.code, ended.out) == (2, ""), option
        assert ended.words.startswith(told)
        assert ended.words.endswith(".")


def test_quickstart_in_json(
    call: Callable[..., Ended], sample_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from predistill.stages import quickstart as stage

    monkeypatch.setattr(stage, "TOKENS", 5000)
    monkeypatch.setattr(stage, "HELD_OUT", 0.15)
    ended = call("quickstart", "--out", tmp_path / "q", "--text", sample_text, "--json")
    assert (ended.code, ended.err) == (0, "")
    facts = json.loads(ended.out)
    assert facts["page"] == str(tmp_path / "q" / "report.html")
    assert facts["gain_nats"] == facts["lm_loss_nats"] - facts["pd_loss_nats"]


def test_no_verb_shows_a_traceback_for_what_is_not_there(call: Callable[..., Ended], tmp_path: Path) -> None:
    none = tmp_path / "none"
    for argv in (
        ("prepare", none, "--out", tmp_path / "c", "--train-tokenizer", "300"),
        ("capture", "--teacher", none, "--corpus", none, "--out", tmp_path / "s"),
        ("evaluate", none),
        ("generate", none),
        ("report", none),
        ("store", "inspect", none),
        ("store", "verify", none),
    ):
        ended = call(*argv)
        assert ended.code == 2, argv
        assert str(none) in ended.words
        assert ended.words.endswith(".")
        assert ended.out == ""
    assert list(tmp_path.iterdir()) == []

"""A recipe: read to the letter, or refused in one sentence that names the file, the key and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from predistill.errors import RecipeError
from predistill.objective import KLD, NLL, WSD, Constant, Full, Ghost, Renormalise, Sampled, Static, TopPK
from predistill.recipe import Expected, LiveTeaching, LogTargets, read_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
LR = {"kind": "constant", "value": 0.001}
LM: dict[str, Any] = {"corpus": [{"path": "c"}], "lr": LR, "tokens": 1000, "batch_tokens": 64}
PD: dict[str, Any] = LM | {"corpus": [{"path": "c", "store": "s"}], "teacher": {"kind": "stored"}}


def refusal(content: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(content, overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_the_defaults_are_the_paper_s() -> None:
    recipe = read_recipe(LM)
    assert recipe.truncation == TopPK(p=0.95, k=100)
    assert recipe.loss == KLD()
    assert recipe.tail == Renormalise()
    assert recipe.temperature == Static(value=1.0)
    assert recipe.alpha == Constant(value=0.9)
    assert recipe.teacher.kind == "none"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    assert read_recipe(path).steps > 0


LIVE: dict[str, Any] = LM | {"teacher": {"kind": "live", "model": "teachers/large"}}
LOG: dict[str, Any] = LM | {"log_targets": {"out": "stores/online"}, "tokens": 6400}


def test_a_live_teacher_names_its_model_and_no_store() -> None:
    recipe = read_recipe(LIVE)
    assert recipe.taught
    assert recipe.teacher == LiveTeaching(model="teachers/large", dtype="fp32")
    assert read_recipe(PD, ["teacher.kind=live", "teacher.model=m"]).corpus[0].store == "s", "named, and not read"
    sentence = "recipe: teacher.live.model is missing. Name a Hugging Face directory, a .gguf file, or a finished run."
    assert refusal(LM | {"teacher": {"kind": "live"}}) == sentence
    assert "teacher.live.dtype is 'int8'" in refusal(LIVE, "teacher.dtype=int8")
    assert 'did you mean "live"? One of none, stored, live.' in refusal(LIVE, "teacher.kind=lvie")
    assert "teacher.stored.model is not a known key" in refusal(PD, "teacher.model=m")


def test_a_live_teacher_allows_what_no_store_can_give() -> None:
    tempered = {"tail": {"kind": "ghost"}, "temperature": {"kind": "static", "value": 2.0}}
    assert read_recipe(LIVE | tempered).tail == Ghost()
    assert read_recipe(LIVE | {"truncation": {"kind": "full"}}).truncation == Full()
    scaled = {"temperature": {"kind": "entropy"}}
    assert "mean_entropy_nats" in refusal(LIVE | scaled)
    assert read_recipe(LIVE | scaled, ["temperature.reference=3"]).temperature.kind == "entropy"
    assert "use tail renormalise, or truncation full" in refusal(
        LIVE | {"temperature": {"kind": "entropy", "reference": 3.0}, "tail": {"kind": "ghost"}}
    )


def test_targets_are_logged_in_the_last_quarter_unless_told() -> None:
    assert read_recipe(LM).log_targets is None
    assert not read_recipe(LM).logged_steps
    recipe = read_recipe(LOG)
    assert recipe.log_targets == LogTargets(out="stores/online", from_frac=0.75, to_frac=1.0, rows=None)
    assert recipe.log_targets.truncation == TopPK(p=0.95, k=100)
    assert recipe.logged_steps == range(75, 100)
    assert read_recipe(LOG, ["log_targets.from_frac=0", "log_targets.to_frac=0.25"]).logged_steps == range(25)
    assert read_recipe(LOG, ["log_targets.rows=2K"]).log_targets.rows == 2000  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("log_targets.to_frac=0.75", "no step lies between from_frac 0.75 and to_frac 0.75 of 100 steps"),
        ("log_targets.truncation.kind=full", "log_targets.truncation is full"),
        ("log_targets.truncation={kind: sampled, draws: 5, proposal_temperature: 2}", "use 1."),
        ("log_targets.form_frac=0.5", 'log_targets.form_frac is not a known key; did you mean "from_frac"?'),
        ("log_targets.truncation={kind: top_k, p: 5}", "log_targets.truncation.top_k"),
        ("log_targets.from_frac=1", "log_targets.from_frac"),
        ("log_targets={}", "log_targets.out is missing."),
        ("corpus=[{path: a}, {path: b}]", "this recipe mixes 2"),
    ],
)
def test_a_log_that_cannot_be_is_refused(override: str, words: str) -> None:
    assert words in refusal(LOG, override)


def test_there_are_shipped_recipes() -> None:
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("content", [LM, PD, LIVE, LOG])
def test_a_resolved_recipe_is_the_same_recipe(content: dict[str, Any]) -> None:
    recipe = read_recipe(content)
    again = yaml.safe_load(yaml.safe_dump(recipe.resolved()))
    assert again == recipe.resolved()
    assert read_recipe(again) == recipe


@pytest.mark.parametrize(
    ("text", "count"), [("1M", 10**6), ("2.5K", 2500), ("3 B", 3 * 10**9), ("1T", 10**12), (12, 12), ("12", 12)]
)
def test_tokens_have_units_of_a_thousand(text: str | int, count: int) -> None:
    assert read_recipe(LM | {"tokens": text}).tokens == count


@pytest.mark.parametrize("text", ["1m", "M", "1 000", "-1M", "1.5", 0, -3, "many", None])
def test_what_is_no_count_of_tokens_is_refused_by_name(text: Any) -> None:
    assert refusal(LM | {"tokens": text}).startswith("recipe: tokens is ")


def test_steps_are_tokens_over_batch_rounded_up() -> None:
    assert read_recipe(LM | {"tokens": 640}).steps == 10
    assert read_recipe(LM | {"tokens": 641}).steps == 11


@pytest.mark.parametrize(
    ("cadence", "every"), [("5%", 5), ("0.1%", 1), (0.25, 25), (7, 7), (1, 1), (None, None), ("100%", 100), (1.0, 100)]
)
def test_a_cadence_is_a_share_of_the_run_or_a_number_of_steps(cadence: Any, every: int | None) -> None:
    recipe = read_recipe(LM | {"tokens": 6400, "evaluate_every": cadence})
    assert recipe.steps == 100
    assert recipe.every(recipe.evaluate_every) == every


@pytest.mark.parametrize("cadence", ["often", -5, 0, "-5%"])
def test_what_is_no_cadence_is_refused(cadence: Any) -> None:
    assert "checkpoint_every" in refusal(LM | {"checkpoint_every": cadence})


def test_a_wrong_kind_is_answered_with_the_near_one_and_all() -> None:
    sentence = refusal(PD | {"loss": {"kind": "kdl"}})
    every = "One of nll, kld, reverse_kld, jsd, mse."
    assert sentence == f'recipe: loss.kind is "kdl"; did you mean "kld"? {every}'
    assert refusal(PD | {"loss": {"kind": "zzzz"}}) == f'recipe: loss.kind is "zzzz". {every}'


def test_a_missing_kind_is_shown_how_to_write() -> None:
    assert refusal(PD | {"lr": {"peak": 0.1}}) == "recipe: lr: no kind. Write, for example, lr: {kind: ...}."


@pytest.mark.parametrize(
    ("content", "start", "listed"),
    [
        (LM | {"tokns": 3}, 'tokns is not a known key; did you mean "tokens"?', "batch_tokens"),
        (LM | {"student": {"prest": "nano-s"}}, 'student.prest is not a known key; did you mean "preset"?', "from"),
        (LM | {"corpus": [{"path": "c", "stor": "s"}]}, "corpus.0.stor is not a known key; did you mean", "store"),
        (LM | {"lr": LR | {"valu": 1}}, 'lr.constant.valu is not a known key; did you mean "value"?', "value"),
        (
            LM | {"truncation": {"kind": "top_p_k", "p": 0.9, "k": 5, "q": 1}},
            "truncation.top_p_k.q is not a known key.",
            "p, k, kind",
        ),
        (LM | {"temperature": {"kind": "static", "valeu": 2}}, "temperature.static.valeu is not a known key", "sides"),
        (LM | {"optimizer": {"betas": [0.9, 0.95], "lr": 1}}, "optimizer.lr is not a known key", "clip"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_answered_with_the_near_one_and_all(content: dict[str, Any], start: str, listed: str) -> None:
    sentence = refusal(content)
    assert sentence.startswith(f"recipe: {start}")
    assert listed in sentence.split("One of", 1)[1]


@pytest.mark.parametrize(
    ("key", "named"), [("corpus", "corpus"), ("lr", "lr"), ("tokens", "tokens"), ("batch_tokens", "batch_tokens")]
)
def test_what_is_missing_is_named(key: str, named: str) -> None:
    assert refusal({k: v for k, v in LM.items() if k != key}) == f"recipe: {named} is missing."


def test_a_missing_field_of_a_choice_is_named() -> None:
    sentence = refusal(LM | {"lr": {"kind": "wsd"}})
    assert sentence.startswith("recipe: lr.")
    assert sentence.endswith("peak is missing.")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"micro_batch_rows": 0}, "micro_batch_rows is 0"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"corpus": []}, "corpus is []"),
        ({"corpus": [{"path": "c", "weight": 0}]}, "corpus.0.weight is 0"),
        ({"optimizer": {"clip": 0}}, "optimizer.clip is 0"),
        ({"keep": 0}, "keep is 0"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_found(changes: dict[str, Any], named: str) -> None:
    assert refusal(LM | changes).startswith(f"recipe: {named}: ")


@pytest.mark.parametrize(
    ("changes", "reason", "nearest"),
    [
        ({"tail": {"kind": "ghost"}, "temperature": {"kind": "norm_kd"}}, "tail ghost with temperature", "renormalise"),
        ({"loss": {"kind": "mse"}, "tail": {"kind": "ghost"}}, "loss mse does not go with tail ghost", "kld"),
        ({"truncation": {"kind": "sampled", "draws": 5}}, "tail renormalise does not go with sampled", "as_sampled"),
        ({"tail": {"kind": "as_sampled"}}, "tail as_sampled goes with sampled targets only", "renormalise"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_with_the_file_the_reason_and_the_nearest_allowed(
    changes: dict[str, Any], reason: str, nearest: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(PD | changes))
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: {reason}")
    assert nearest in str(caught.value).split(reason, 1)[1]
    assert read_recipe(LM | changes).teacher.kind == "none"  # nobody asks a teacher: the parts are not used


def test_of_a_taught_mixture_one_corpus_has_a_store_at_least() -> None:
    assert read_recipe(PD | {"corpus": [{"path": "c", "store": "s"}, {"path": "d"}]}).corpus[1].store is None
    sentence = refusal(PD | {"corpus": [{"path": "c"}, {"path": "d"}]})
    assert "corpus c, d names no store" in sentence
    assert "predistill capture" in sentence


def test_what_a_corpus_is_expected_to_be_is_whole_and_known() -> None:
    expects = {"vocab_size": 100, "row_len": 8, "tokens": "1M"}
    (entry,) = read_recipe(LM | {"corpus": [{"path": "c", "expects": expects}]}).corpus
    assert entry.expects == Expected(vocab_size=100, row_len=8, tokens=1_000_000)
    assert refusal(LM | {"corpus": [{"path": "c", "expects": {"tokens": 1}}]}).endswith("vocab_size is missing.")
    sentence = refusal(LM | {"corpus": [{"path": "c", "expects": expects | {"words": 1}}]})
    assert "corpus.0.expects.words is not a known key" in sentence
    assert "teacher_parameters" in sentence


def test_overrides_reach_every_depth() -> None:
    recipe = read_recipe(
        PD | {"lr": {"kind": "wsd", "peak": 0.1}},
        ["lr.peak=1e-3", "tokens=2M", "corpus.0.path=other", "student.preset=nano-m", "optimizer.clip=null", "name=小"],
    )
    assert isinstance(recipe.lr, WSD)
    assert recipe.lr.peak == 0.001
    assert recipe.tokens == 2_000_000
    assert (recipe.corpus[0].path, recipe.corpus[0].store) == ("other", "s")
    assert recipe.student.preset == "nano-m"
    assert recipe.optimizer.clip is None
    assert recipe.name == "小"


def test_an_override_leaves_its_source_as_it_was() -> None:
    content = {**LM, "lr": dict(LR)}
    read_recipe(content, ["lr.value=0.5"])
    assert content["lr"] == LR


def test_another_kind_drops_the_fields_of_the_old_one() -> None:
    recipe = read_recipe(
        PD, ["truncation.kind=sampled", "truncation.draws=50", "tail.kind=as_sampled", "loss.kind=nll"]
    )
    assert recipe.truncation == Sampled(draws=50)
    assert recipe.loss == NLL()
    same = read_recipe(PD | {"lr": {"kind": "wsd", "peak": 0.25}}, ["lr.kind=wsd"])
    assert isinstance(same.lr, WSD)
    assert same.lr.peak == 0.25
    assert read_recipe(PD, ["tail.kind=ghost"]).tail == Ghost()


@pytest.mark.parametrize("override", ["lr.peak", "=3", "tokens 3"])
def test_what_is_no_override_is_shown_how_to_write(override: str) -> None:
    assert "is not key=value" in refusal(LM, override)


def test_an_override_of_a_list_needs_an_index_of_it() -> None:
    assert refusal(LM, "corpus.1.path=x").startswith("corpus.1.path: 1 is not an index of a list of 1.")
    assert refusal(LM, "corpus.path=x").startswith("corpus.path: path is not an index of a list of 1.")


def test_a_wrong_override_is_refused_as_the_key_would_be() -> None:
    assert refusal(PD, "loss.kind=kdl").startswith('recipe: loss.kind is "kdl"; did you mean "kld"?')


def test_an_override_whose_value_is_no_yaml_is_refused() -> None:
    assert "name" in refusal(LM, "name={")


def test_a_file_that_is_not_there_or_no_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.yaml: no such recipe"):
        read_recipe(tmp_path / "none.yaml")
    path = tmp_path / "a.yaml"
    path.write_text("a: [1\n")
    with pytest.raises(RecipeError, match=r"a.yaml: not readable as YAML"):
        read_recipe(path)
    path.write_text("- 1\n")
    with pytest.raises(RecipeError, match=r"a.yaml: a recipe is a mapping"):
        read_recipe(path)
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match=r"a.yaml: not readable as YAML"):
        read_recipe(path)
    path.write_text(yaml.safe_dump(LM | {"tokns": 1}))
    with pytest.raises(RecipeError, match=r"a.yaml: tokns is not a known key"):
        read_recipe(path)

"""Every task file asks for nothing that its rows do not hold, suites have the paper's shots, and names are checked."""

from __future__ import annotations

from typing import get_args

import pytest
from jinja2 import meta
from lm_eval.utils import env

from predistill.errors import RecipeError
from predistill.evaluation.suites import PAPER8, SUITES, Kind, Task, chosen_tasks, task_names
from tests.evaluation.ours import FILES

NAMES = task_names()
PAPER_SHOTS = {"hellaswag": 0, "winogrande": 0, "piqa": 0, "mmlu": 6, "kbqa": 0, "c3": 5, "ceval": 5, "gsm8k": 8}
TEMPLATES = ("doc_to_text", "doc_to_choice", "doc_to_target", "description")
BY_LENGTH = {"hellaswag", "piqa", "c3", "arc_easy", "openbookqa"}  # choices of several words, of several lengths


def task_of(name: str) -> Task:
    (task,) = chosen_tasks(name)
    return task


def named_in(asks: dict[str, object], form: dict[str, str]) -> set[str]:
    """What the templates read: a template's variables; a string without braces is a field's name where there is one."""
    found: set[str] = set()
    for key in TEMPLATES:
        template = asks.get(key)
        if isinstance(template, str):
            found |= {template} if template in form else meta.find_undeclared_variables(env.parse(template))
    return found - set(env.globals)


@pytest.mark.parametrize("name", NAMES)
def test_templates_read_every_field_of_the_form_and_no_other(name: str) -> None:
    task = task_of(name)
    shown = task.asks.get("fewshot_config", {})
    read = named_in(dict(task.asks), task.rows.form) | named_in(shown, task.rows.form)
    assert read | set(filter(None, [task.rows.group])) == set(task.rows.form)
    assert {task.rows.group, task.rows.distinct} - {None} <= set(task.rows.form)


@pytest.mark.parametrize("name", NAMES)
def test_choices_are_checked_before_the_answer_that_counts_them(name: str) -> None:
    form = task_of(name).rows.form
    assert set(form.values()) <= set(get_args(Kind))
    if "choice" in form.values():
        kinds = list(form)
        assert kinds.index("choices") < kinds.index(next(key for key, kind in form.items() if kind == "choice"))


@pytest.mark.parametrize("name", NAMES)
def test_a_task_names_its_files_its_place_on_the_hub_and_what_it_measures(name: str) -> None:
    task = task_of(name)
    assert task.name == name
    assert task.rows.file in FILES
    assert task.rows.shots is None or task.rows.shots in FILES
    assert (task.rows.shots is None) == (task.hub.shots is None)
    assert task.rows.shots is not None or not task.shots  # examples come from elsewhere than what is asked
    assert task.hub.path.count("/") == 1
    assert task.version >= 1.0
    assert task.headline in task.metric_names
    assert all(note.startswith(f"{name}: ") for note in task.notes)


def test_the_headline_is_normalised_by_length_where_answers_have_several() -> None:
    assert {name for name in NAMES if task_of(name).headline == "acc_norm"} == BY_LENGTH
    others = {name: task_of(name).headline for name in NAMES if name not in BY_LENGTH}
    assert others == dict.fromkeys(("winogrande", "mmlu", "ceval", "boolq", "lambada", "blimp"), "acc") | {
        "kbqa": "exact_match",
        "gsm8k": "exact_match",
    }


def test_paper8_is_the_papers_eight_with_its_shots() -> None:
    assert {task.name: task.shots for task in chosen_tasks("paper8")} == PAPER_SHOTS
    assert chosen_tasks("gsm8k")[0].asks["generation_kwargs"]["do_sample"] is False
    assert any("KBQA" in note for note in task_of("kbqa").notes)


def test_wide13_is_every_task_and_the_papers_come_first() -> None:
    names = [task.name for task in chosen_tasks("wide13")]
    assert sorted(names) == NAMES
    assert tuple(names[:8]) == PAPER8
    assert all(task.shots == 0 for task in chosen_tasks("wide13") if task.name not in PAPER_SHOTS)
    assert not set(SUITES) & set(NAMES)


def test_a_colon_gives_the_examples_and_what_is_named_last_holds() -> None:
    assert chosen_tasks("mmlu:5")[0].shots == 5
    assert chosen_tasks("mmlu:0")[0].shots == 0
    assert chosen_tasks("mmlu")[0].shots == 6  # what is asked once is not kept
    named = {task.name: task.shots for task in chosen_tasks(" paper8 , piqa:3,arc_easy ,, mmlu:5")}
    assert named == PAPER_SHOTS | {"piqa": 3, "arc_easy": 0, "mmlu": 5}
    assert {task.shots for task in chosen_tasks("wide13:2")} == {2}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("helaswag", 'no task "helaswag"; did you mean "hellaswag"?'),
        ("paper9", 'no task "paper9"; did you mean "paper8"?'),
        ("piqa,Winogrande", 'no task "Winogrande"; did you mean "winogrande"?'),
        ("zzz", 'no task "zzz". Suites: heldout, paper8, wide13; tasks: arc_easy, blimp, '),
        ("qqq:3", 'no task "qqq". '),
        ("../tasks/piqa", 'no task "../tasks/piqa"'),
    ],
)
def test_a_name_that_is_none_is_refused_and_the_nearest_is_offered(words: str, told: str) -> None:
    with pytest.raises(RecipeError) as error:
        chosen_tasks(words)
    assert told in str(error.value)


@pytest.mark.parametrize("words", ["", " ", ",", " , ,"])
def test_no_name_at_all_is_refused(words: str) -> None:
    with pytest.raises(RecipeError, match=r"names no task\. One of heldout, paper8, wide13, or a task's name"):
        chosen_tasks(words)


@pytest.mark.parametrize("words", ["mmlu:", "mmlu:five", "mmlu:-1", "mmlu:5.0", "mmlu:²", "paper8:x"])
def test_shots_are_a_whole_number(words: str) -> None:
    with pytest.raises(RecipeError) as error:
        chosen_tasks(words)
    assert f'"{words}": after the colon stands how many examples to give, such as mmlu:5.' in str(error.value)

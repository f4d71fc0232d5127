"""What a recipe names is opened and checked together; sizes are those of the model, the corpus and the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from predistill.corpus import Corpus
from predistill.errors import PredistillError, RecipeError
from predistill.laws import training_flops
from predistill.recipe import read_recipe
from predistill.stages.inputs import open_inputs
from predistill.stages.prepare import prepare
from predistill.store import Store
from predistill.students import PRESETS
from tests.made import BATCH_ROWS, ROW_LEN, STEPS, recipe_content


def sizes(content: dict[str, Any]) -> dict[str, Any]:
    recipe = read_recipe(content)
    return open_inputs(recipe).sizes(recipe)


def test_sizes_are_those_of_the_preset_the_corpus_and_the_store(corpus: Path, store: Path) -> None:
    found, preset, words = sizes(recipe_content(corpus, store)), PRESETS["nano-xs"], Corpus(corpus).vocab_size
    assert found["parameters"] == preset.parameters(words)
    assert found["non_embedding_parameters"] == preset.non_embedding_parameters
    assert found["steps"] == STEPS
    assert found["tokens"] == STEPS * BATCH_ROWS * ROW_LEN
    assert found["epochs"] == STEPS * BATCH_ROWS / len(Corpus(corpus))
    assert found["flops"] == found["tokens"] * training_flops(
        matrix_parameters=preset.parameters(words), layers=preset.layers, width=preset.hidden, row_len=ROW_LEN
    )
    assert found["store_bytes"] == Store(store).totals["bytes"] > 10_000
    assert found["memory_bytes"]["weights"] == 4 * found["parameters"]
    assert sizes(recipe_content(corpus))["store_bytes"] == 0


def test_an_untied_head_counts_twice_in_parameters_and_once_in_flops(corpus: Path) -> None:
    preset = PRESETS["670m"]
    found = sizes(recipe_content(corpus, student={"preset": "670m"}))
    assert found["parameters"] == preset.parameters(2048)
    assert found["non_embedding_parameters"] == preset.non_embedding_parameters
    assert found["flops"] == found["tokens"] * training_flops(
        matrix_parameters=preset.non_embedding_parameters + 2048 * preset.hidden,
        layers=preset.layers,
        width=preset.hidden,
        row_len=ROW_LEN,
    )


@pytest.mark.parametrize(
    ("expects", "words"),
    [
        ({"vocab_size": 2049}, "plain: has 2,048 words, and the recipe expects 2,049 .*expects.vocab_size"),
        ({"row_len": 128}, "plain: has 64 tokens a row, and the recipe expects 128"),
        ({"tokens": "1B"}, "plain: has .* training tokens, and the recipe expects 1,000,000,000"),
    ],
)
def test_a_corpus_that_is_not_as_expected_is_refused(corpus: Path, expects: dict[str, Any], words: str) -> None:
    right = {"vocab_size": 2048, "row_len": ROW_LEN, "tokens": len(Corpus(corpus)) * ROW_LEN}
    content = recipe_content(corpus, corpus=[{"path": str(corpus), "expects": right}])
    assert sizes(content)["steps"] == STEPS
    refused(recipe_content(corpus, corpus=[{"path": str(corpus), "expects": right | expects}]), words)
    absent = recipe_content(corpus, corpus=[{"path": "none", "expects": right}])
    refused(absent, "none: no prepared corpus here")  # only a dry run reckons with what is not there


def test_experts_count_whole_in_parameters_and_as_used_in_flops(corpus: Path, tmp_path: Path) -> None:
    from transformers import OlmoeConfig

    found = {}
    for experts, used in ((8, 2), (8, 8), (2, 2)):
        made = OlmoeConfig(
            hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            num_experts=experts, num_experts_per_tok=used, vocab_size=9,
        )  # fmt: skip
        made.save_pretrained(tmp_path)
        found[experts, used] = sizes(recipe_content(corpus, student={"preset": str(tmp_path)}))
    router = 2 * 32 * (8 - 2)
    assert found[8, 2]["parameters"] == found[8, 8]["parameters"] == found[8, 8]["active_parameters"]
    assert found[8, 2]["active_parameters"] == found[2, 2]["parameters"] + router
    assert found[8, 2]["flops"] - found[2, 2]["flops"] == 6 * router * found[2, 2]["tokens"]


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_any_configuration_has_sizes(corpus: Path, tmp_path: Path, model_type: str) -> None:
    from transformers import GPT2Config, LlamaConfig

    made = {
        "llama": LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
        ),
        "gpt2": GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=ROW_LEN, vocab_size=9),
    }[model_type]
    made.save_pretrained(tmp_path)
    assert sizes(recipe_content(corpus, student={"preset": str(tmp_path)}))["parameters"] > 2048 * 32


def test_the_record_of_inputs_names_what_must_not_change_and_where_it_came_from(corpus: Path, store: Path) -> None:
    recipe = read_recipe(recipe_content(corpus, store))
    record = open_inputs(recipe).environment(recipe)
    assert record["identity"] == {
        "corpus": [Corpus(corpus).fingerprint],
        "store": [Store(store).manifest["store_id"]],
    }
    (named,) = record["inputs"]["corpus"]
    assert (named["path"], named["rows"]) == (str(corpus), len(Corpus(corpus)))
    (kept,) = record["inputs"]["store"]
    assert kept["totals"] == Store(store).totals
    assert sum(kept["bytes_by_stream"].values()) == kept["totals"]["bytes"]
    assert kept["manifest"]["truncation"] == {"kind": "top_p_k", "p": 0.95, "k": 100}
    assert record["machine"]["threads"] == 1
    assert set(record["versions"]) == {"python", "predistill", "torch", "transformers", "numpy"}


def test_a_loose_store_of_an_lm_run_is_not_opened(corpus: Path, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_content(corpus, tmp_path / "none", teacher={"kind": "none"}))
    assert open_inputs(recipe).stores == ()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"row_len": 32}, r"other and .*plain do not mix: row length 32 and 64\..*--row-len"),
        ({"train_tokenizer": 400, "tokenizer": None}, "do not mix: vocabulary 400 and 2048"),
        ({"train_tokenizer": 2048, "tokenizer": None}, "do not mix: tokenizer .* and "),
        ({"document_mask": True}, r"do not mix: document mask True and False\..*--document-mask"),
    ],
)
def test_corpora_that_do_not_mix_are_refused(
    corpus: Path, sample_text: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    other = tmp_path / "other"
    prepare(sample_text, out=other, **({"tokenizer": corpus, "row_len": ROW_LEN, "processes": 1} | settings))
    refused(recipe_content(corpus, corpus=[{"path": str(corpus)}, {"path": str(other)}]), words)


def test_a_store_of_the_held_out_split_does_not_teach(corpus: Path, lm_run: Any, tmp_path: Path) -> None:
    from predistill.objective import TopPK
    from predistill.stages.capture import capture

    capture(lm_run.path, corpus=corpus, out=tmp_path / "s", truncation=TopPK(p=0.95, k=100), split="held_out")
    refused(recipe_content(corpus, tmp_path / "s"), "captured over another corpus")


def test_what_is_not_there_is_named(corpus: Path, tmp_path: Path) -> None:
    refused(recipe_content(tmp_path / "none"), "none: no prepared corpus here")
    refused(recipe_content(corpus, tmp_path / "none"), "none: no teacher store is here")
    refused(recipe_content(corpus, student={"preset": "nano-q"}), 'student.preset is "nano-q"')


def refused(content: dict[str, Any], words: str) -> None:
    with pytest.raises(PredistillError, match=words) as caught:
        open_inputs(read_recipe(content))
    assert isinstance(caught.value, RecipeError) or ":" in str(caught.value)

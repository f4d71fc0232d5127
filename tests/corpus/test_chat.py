"""Chat templates: rendered as Transformers renders them, in a sandbox, and looked for where Transformers looks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from predistill.corpus.chat import PLAIN, ChatTemplate, TemplateFailed, chat_template
from predistill.errors import CorpusError
from tests.chats import CHATML, MESSAGES, TEMPLATES

WORDS = {"bos_token": "<s>", "eos_token": "</s>"}


def made(text: str) -> ChatTemplate:
    return ChatTemplate(text, "t.jinja", WORDS)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generation_prompt", [False, True])
def test_a_conversation_is_written_as_transformers_writes_it(name: str, generation_prompt: bool) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **WORDS)
    for count in range(1, len(MESSAGES) + 1):
        written = theirs.apply_chat_template(
            MESSAGES[:count],
            chat_template=TEMPLATES[name],
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
        assert made(TEMPLATES[name]).render(MESSAGES[:count], generation_prompt=generation_prompt) == written


def test_the_plain_template_is_question_and_answer() -> None:
    plain = made(PLAIN)
    assert plain.render(MESSAGES) == (
        "Be brief.\n\nQuestion: What is 2 + 3?\nAnswer: It is 5.\n\nQuestion: 春天？\nAnswer: 春眠不觉晓。"
    )
    prompt = plain.render([{"role": "user", "content": " Why?\n"}], generation_prompt=True)
    assert prompt == "Question: Why?\nAnswer:"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ raise_exception('no system message here') }}", "no system message here"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ 1 + messages }}", "unsupported operand"),
        ("{{ strftime_now('%d') }}", "'strftime_now' is undefined"),
    ],
)
def test_what_a_template_may_not_do_is_a_failure_and_nothing_more(text: str, says: str) -> None:
    with pytest.raises(TemplateFailed, match=says):
        made(text).render(MESSAGES)


def test_what_is_no_template_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"t\.jinja: line 2 is not a chat template \(.*\)\. Mend it, or name another"):
        made("{{ messages }}\n{% for %}")
    with pytest.raises(CorpusError, match=r"none\.jinja: no such file\. Name a chat template with --chat-template\."):
        chat_template(tmp_path / "none.jinja", tokenizer=None, config={})
    (tmp_path / "a.jinja").write_bytes(b"\xff")
    with pytest.raises(CorpusError, match=r"a\.jinja: not a chat template"):
        chat_template(tmp_path / "a.jinja", tokenizer=None, config={})


def test_a_given_file_goes_before_the_tokenizers_own_and_that_before_the_plain_one(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    config = {"eos_token": {"content": "<x>"}, "chat_template": [{"name": "default", "template": "in the config"}]}

    def found(given: Path | None = None, config: dict[str, object] = config) -> tuple[str, str]:
        template = chat_template(given, tokenizer=tokenizer, config=config)
        return template.source, template.text

    assert found(config={}) == ("plain", PLAIN)
    assert found() == ("tokenizer", "in the config")
    assert found(config={"chat_template": "alone"}) == ("tokenizer", "alone")
    (tmp_path / "chat_template.jinja").write_text("in a file")
    assert found() == ("tokenizer", "in a file")
    (tmp_path / "mine.jinja").write_text("{{ eos_token }}")
    assert found(tmp_path / "mine.jinja") == ("mine.jinja", "{{ eos_token }}")
    assert chat_template(tmp_path / "mine.jinja", tokenizer=tokenizer, config=config).render([]) == "<x>"
    (tmp_path / "chat_template.jinja").write_text(PLAIN)
    assert found() == ("plain", PLAIN)


def test_a_manifest_keeps_the_template_itself() -> None:
    facts = json.loads(json.dumps(made(CHATML).facts))
    assert (facts["source"], facts["text"], len(facts["sha256"])) == ("t.jinja", CHATML, 64)

"""What is counted of a conversation is what the assistant says and what closes it, in the words of any template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from predistill.assets import tokenizer_path
from predistill.corpus.chat import PLAIN, ChatTemplate, TemplateFailed
from predistill.corpus.conversations import Conversation, conversations, marked_ids, response_spans
from predistill.corpus.marks import CLOSES, COUNTED, MARKED_DTYPE, ids_and_marks
from predistill.corpus.tokenizer import CorpusTokenizer, load_tokenizer
from predistill.errors import CorpusError
from tests.chats import CHATML, MESSAGES, TEMPLATES

END = "<|endoftext|>"
WORDS = {"bos_token": END, "eos_token": END}


@pytest.fixture(scope="module")
def tokenizer() -> CorpusTokenizer:
    loaded = load_tokenizer(tokenizer_path())
    assert loaded.end_token == END
    return loaded


def made(text: str) -> ChatTemplate:
    return ChatTemplate(text, "t.jinja", WORDS)


def told(template: ChatTemplate, messages: list[dict[str, str]]) -> Conversation:
    text = template.render(messages)
    spans, closed_by_end = response_spans(template, messages, text)
    return Conversation(text, spans, closed_by_end, b"")


def marked(tokenizer: CorpusTokenizer, conversation: Conversation) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Ids, which are counted, which close."""
    both = marked_ids(tokenizer.tokenizer, conversation, end_id=tokenizer.end_id)
    ids, marks = ids_and_marks(both, MARKED_DTYPE)
    return ids.tolist(), (marks & COUNTED) > 0, (marks & CLOSES) > 0


def counted_text(tokenizer: CorpusTokenizer, conversation: Conversation) -> str:
    ids, counted, _ = marked(tokenizer, conversation)
    kept = [token for token, counts in zip(ids, counted, strict=True) if counts]
    return tokenizer.tokenizer.decode(kept, skip_special_tokens=False)


def closed(name: str, responses: list[str]) -> str:
    """What is to be counted: responses with what closes each, by template."""
    if name == "plain":
        return "".join(f" {response}" for response in responses) + END
    if name == "lines":
        return "".join(f" {response}\n" for response in responses) + END
    if name == "brackets":
        return "".join(f" {response} {END}" for response in responses)
    return "".join(f"{response}<|im_end|>" for response in responses)


said = st.text("aé鸟🙂b1 \n.,|<>", min_size=1, max_size=12).map(str.strip).filter(bool)


@pytest.mark.parametrize("name", TEMPLATES)
@given(turns=st.lists(st.tuples(said, said), min_size=1, max_size=4), system=st.none() | said)
@settings(max_examples=40)
def test_decoding_the_counted_labels_gives_what_the_assistant_said_and_what_closes_it(
    tokenizer: CorpusTokenizer, name: str, turns: list[tuple[str, str]], system: str | None
) -> None:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, response in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    conversation = told(made(TEMPLATES[name]), messages)
    assert counted_text(tokenizer, conversation) == closed(name, [response for _, response in turns])
    ids, _, closes = marked(tokenizer, conversation)
    assert closes.tolist() == [False] * (len(ids) - 1) + [True]
    assert ids[-1] == tokenizer.end_id != ids[0]
    whole = tokenizer.tokenizer.encode(conversation.text, add_special_tokens=False).ids
    assert [i for i in ids if i != tokenizer.end_id] == [i for i in whole if i != tokenizer.end_id]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_end_behind_a_question_is_not_counted(tokenizer: CorpusTokenizer, name: str) -> None:
    conversation = told(made(TEMPLATES[name]), MESSAGES[:4])
    assert counted_text(tokenizer, conversation) == closed(name, ["It is 5."]).removesuffix(
        END if name in ("plain", "lines") else ""
    )
    ids, counted, closes = marked(tokenizer, conversation)
    assert (ids[-1], counted[-1], closes[-1]) == (tokenizer.end_id, False, True)


def test_white_space_between_the_prompt_and_a_response_is_for_the_model_to_write(tokenizer: CorpusTokenizer) -> None:
    prompted = "{% for m in messages %}{{ m.role + ':\\n' + m.content + '|' }}{% endfor %}"
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    assert counted_text(tokenizer, told(made(prompted), messages)) == "So.|"
    prompted += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    assert counted_text(tokenizer, told(made(prompted), messages)) == "\nSo.|"


def test_thoughts_are_counted_where_the_template_writes_them(tokenizer: CorpusTokenizer) -> None:
    thought = "<think>Two and\nthree.</think>It is 5."
    messages = [*MESSAGES[:2], {"role": "assistant", "content": thought}]
    template = made(TEMPLATES["thoughts"])
    last = "<think>\nTwo and\nthree.\n</think>\n\nIt is 5.<|im_end|>"
    assert counted_text(tokenizer, told(template, messages)) == last
    assert (
        counted_text(tokenizer, told(template, [*messages, *MESSAGES[3:]]))
        == "It is 5.<|im_end|>春眠不觉晓。<|im_end|>"
    )


def test_a_token_across_a_border_counts_only_if_it_begins_inside() -> None:
    vocabulary = {letter: i for i, letter in enumerate("e:abc|")} | {":a": 6, "c|": 7}
    words = Tokenizer(models.BPE(vocabulary, [(":", "a"), ("c", "|")]))
    conversation = Conversation("b:abc|b", [(2, 5)], False, b"")
    assert words.encode(conversation.text).tokens == ["b", ":a", "b", "c|", "b"]
    ids, marks = ids_and_marks(marked_ids(words, conversation, end_id=0), MARKED_DTYPE)
    assert ids.tolist() == [3, 6, 3, 7, 3, 0]
    assert (marks & COUNTED).tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "message 3 stands in it 2 times"),
        ("{% for m in messages[:2] %}{{ m.content }}{% endfor %}", "message 3 stands in it 0 times"),
        ("{{ messages[2].content | length }}{{ messages[2].content }}", "message 3 does not stand in it in one piece"),
        ("{% for m in messages[::-1] %}{{ m.content }}|{% endfor %}", "does not stand in it in one piece"),
    ],
)
def test_a_template_that_drops_a_response_or_tears_it_apart_has_failed(text: str, says: str) -> None:
    template = made(text)
    with pytest.raises(TemplateFailed, match=says):
        response_spans(template, MESSAGES, template.render(MESSAGES))


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


ASKED = {"question": "What is 2 + 3?", "solution": "It is 5.", "answer": "5", "id": 1}


def test_records_of_every_form_and_packing_are_the_same_conversation(tmp_path: Path) -> None:
    talk = {"messages": MESSAGES[1:3], "question": "other"}
    answered = {"question": ASKED["question"], "answer": ASKED["solution"]}
    path = write(tmp_path / "a.jsonl", ASKED, talk, answered, {**ASKED, "messages": None})
    pq.write_table(pa.table({"id": [1], "messages": [MESSAGES[1:3]]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({key: [ASKED[key]] for key in ("solution", "question")}), tmp_path / "c.parquet")
    sources = [path, tmp_path / "b.parquet", tmp_path / "c.parquet"]
    found = list(conversations(sources, made(PLAIN)))
    text = "Question: What is 2 + 3?\nAnswer: It is 5."
    assert [each.text for each in found] == [text] * 6
    assert {each.plain for each in found} == {text.encode()}


def test_the_text_that_decides_the_split_is_the_same_in_every_template(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": MESSAGES})
    decides = {next(iter(conversations(path, made(template)))).plain for template in TEMPLATES.values()}
    assert decides == {made(PLAIN).render(MESSAGES).encode()}


def changed(place: int, **fields: Any) -> dict[str, Any]:
    return {"messages": [message | (fields if i == place else {}) for i, message in enumerate(MESSAGES)]}


BAD = [
    ("missing field", {"text": "a", "question": "b"}, '"solution" or an "answer" (found: question, text). Name the'),
    ("not a text", {"question": None, "answer": "a"}, 'field "question" is null, not a text'),
    ("not a conversation", {"messages": "hello"}, 'field "messages" is not a list'),
    ("not a conversation", {"messages": [{"role": "user"}]}, 'message 1 has no "role" and "content"'),
    ("not a conversation", changed(1, role="tool"), "message 2 has role 'tool' (there are system, user, assistant)"),
    ("not a text", changed(2, content=[{"text": "a"}]), "message 3 is of type list, not a text"),
    ("invalid UTF-8", changed(1, content="\ud800"), "message 2 holds half a surrogate pair"),
    ("no response", {"messages": []}, "no message of the assistant says anything. Remove it"),
    ("no response", {"question": "a", "solution": " \n"}, "no message of the assistant says anything. Remove it"),
    ("special token", changed(1, content=f"say {END}"), f'message 2 spells the special token "{END}"'),
    ("refused by the template", changed(0, role="user"), "does not write it (no system message)"),
]


@pytest.mark.parametrize(("reason", "record", "says"), BAD)
def test_a_bad_record_is_an_error_with_file_and_line_or_is_counted(
    tmp_path: Path, reason: str, record: dict[str, Any], says: str
) -> None:
    good = {"messages": MESSAGES}
    path = write(tmp_path / "a.jsonl", good, record, good)
    strict = made("{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}" + CHATML)
    with pytest.raises(CorpusError) as error:
        list(conversations(path, strict, special_tokens=[END]))
    assert str(error.value).startswith(f"{path} line 2: ")
    assert says in str(error.value)
    assert str(error.value).endswith(", or pass --skip-bad to leave such documents out (they are counted).")
    documents = conversations(path, strict, special_tokens=[END], skip_bad=True)
    assert len(list(documents)) == 2
    assert documents.skipped == {reason: 1}


def test_in_the_plain_template_special_tokens_are_words_like_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": f"say {END}", "answer": END})
    (found,) = conversations(path, made(PLAIN), special_tokens=[END])
    assert found.text == f"Question: say {END}\nAnswer: {END}"


def test_what_holds_no_records_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(CorpusError, match=r"a\.txt: a whole text, and --instruct reads conversations\. Give \.jsonl"):
        list(conversations(tmp_path / "a.txt", made(PLAIN)))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r'a\.parquet: no "messages", and no "question" .* \(found: text\)\. Name'):
        list(conversations(tmp_path / "a.parquet", made(PLAIN), skip_bad=True))

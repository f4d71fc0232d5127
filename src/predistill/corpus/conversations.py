"""Conversations of sources: records to text by a chat template, and which of its characters the model is to learn.

A record holds `messages` ({role, content}; roles system, user, assistant) or a `question` with its `solution` or
`answer`. Where the responses stand is found by writing the conversation anew with a mark in the place of one: what
stands before and behind the mark stands before and behind the response, whatever the template does. A response begins
where the prompt ends that the template gives a model, as far as only white space stands between, or with the spaces
directly before it, since words take theirs along; it goes on to what the template closes it with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from predistill.corpus.chat import PLAIN, ChatTemplate, Message, TemplateFailed
from predistill.corpus.marks import CLOSES, COUNTED, joined
from predistill.corpus.sources import BadDocument, Documents

__all__ = ["Conversation", "Messages", "conversations", "marked_ids", "response_spans"]

ROLES = ("system", "user", "assistant")
RESPONSES = ("solution", "answer")
COLUMNS = ("messages", "question", *RESPONSES)
PRIVATE_USE = range(0xE000, 0xF900)  # characters that no text means anything by


class Conversation(NamedTuple):
    """`text`, of which the characters of `spans` (from, to) are counted. `closed_by_end`: the end token behind it
    closes a response, and is counted too. `plain`: the same in the plain template, which decides its split."""

    text: str
    spans: list[tuple[int, int]]
    closed_by_end: bool
    plain: bytes


def conversations(
    sources: str | Path | Sequence[str | Path],
    template: ChatTemplate,
    *,
    special_tokens: Iterable[str] = (),
    skip_bad: bool = False,
) -> Documents[Conversation]:
    """The conversations of `sources` in the words of `template`. Bad is what is no conversation, has no response, is
    refused by the template, or spells one of `special_tokens` in a message where the template writes such itself."""
    return Documents(sources, Messages(template, tuple(special_tokens)), skip_bad=skip_bad)


@dataclass(frozen=True)
class Messages:
    """The reading of records that are conversations."""

    template: ChatTemplate
    special_tokens: tuple[str, ...] = ()
    _plain: ChatTemplate = field(default_factory=lambda: ChatTemplate(PLAIN, "plain", {}))

    def columns(self, names: Sequence[str]) -> list[str]:
        return ["messages"] if "messages" in names else ["question", _response_of(names)]

    def record(self, record: Mapping[str, Any]) -> Conversation:
        messages = _messages(record)
        if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
            raise BadDocument("no response", "no message of the assistant says anything", "Remove it")
        self._check_spelling(messages)
        plain = self._plain.render(messages)
        try:
            text = plain if self.template.is_plain else self.template.render(messages)
            spans, closed_by_end = response_spans(self.template, messages, text)
        except TemplateFailed as failed:
            found = f"the chat template does not write it ({failed})"
            raise BadDocument("refused by the template", found, "Mend it, choose another --chat-template") from None
        return Conversation(text, spans, closed_by_end, plain.encode())

    def text(self, raw: bytes) -> Conversation:
        del raw
        found = "a whole text, and --instruct reads conversations"
        raise BadDocument("not a conversation", found, "Give .jsonl or .parquet, leave --instruct out")

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.special_tokens)))

    def _check_spelling(self, messages: Sequence[Message]) -> None:
        if self.template.is_plain or not self.special_tokens:
            return
        for number, message in enumerate(messages, start=1):
            if spelled := self._special.search(message["content"]):
                found = (
                    f'message {number:,} spells the special token "{spelled[0]}", which is for the template to write'
                )
                raise BadDocument("special token", found)


def _messages(record: Mapping[str, Any]) -> list[dict[str, str]]:
    if record.get("messages") is None:
        response = _response_of(record)
        return [
            {"role": role, "content": _content(record[name], f'field "{name}"')}
            for role, name in (("user", "question"), ("assistant", response))
        ]
    if not isinstance(record["messages"], list):
        raise BadDocument("not a conversation", 'field "messages" is not a list')
    messages = []
    for number, message in enumerate(record["messages"], start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise BadDocument("not a conversation", f'message {number:,} has no "role" and "content"')
        if message["role"] not in ROLES:
            found = f"message {number:,} has role {message['role']!r} (there are {', '.join(ROLES)})"
            raise BadDocument("not a conversation", found)
        messages.append({"role": message["role"], "content": _content(message["content"], f"message {number:,}")})
    return messages


def _content(value: Any, name: str) -> str:
    if not isinstance(value, str):
        found = "null" if value is None else f"of type {type(value).__name__}"
        raise BadDocument("not a text", f"{name} is {found}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadDocument("invalid UTF-8", f"{name} holds half a surrogate pair, which is not UTF-8") from None
    return value


def _response_of(names: Iterable[str]) -> str:
    """Which field holds the response to the question."""
    found = set(names)
    response = next((name for name in RESPONSES if name in found), None)
    if response is None or "question" not in found:
        listed = ", ".join(sorted(found))
        wanted = 'no "messages", and no "question" with a "solution" or an "answer"'
        raise BadDocument("missing field", f"{wanted} (found: {listed})", "Name the fields so")
    return response


def response_spans(
    template: ChatTemplate, messages: Sequence[Message], text: str
) -> tuple[list[tuple[int, int]], bool]:
    """Where the responses of `messages`, with what closes them, stand in `text`, which `template` made of them; and
    whether the last one is still open at the end, for the end token to close.

    Raises `TemplateFailed` where the template leaves a response out, writes it twice or tears it apart.
    """
    mark = next(mark for mark in map(chr, PRIVATE_USE) if mark not in text)
    spans: list[tuple[int, int]] = []
    open_at_end = False
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, behind = _around(template, messages, place, mark)
        start, stop = len(before), len(text) - len(behind)
        whole = text.startswith(before) and text[start:stop].strip() == message["content"].strip()
        prompt = _prompt(template, messages[:place])
        if prompt is not None and text.startswith(prompt) and len(prompt) <= stop:
            if not whole:  # the template writes it anew, as it does with thoughts: it is all that follows the prompt
                start, whole = len(prompt), True
            elif not text[len(prompt) : start].strip():
                start = min(start, len(prompt))
        if not whole or not text.endswith(behind) or (spans and start < spans[-1][1]):
            raise TemplateFailed(f"message {place + 1:,} does not stand in it in one piece")
        start = len(text[:start].rstrip(" "))
        last = place == len(messages) - 1
        closing = behind if last else _around(template, messages[: place + 1], place, mark)[1]
        ending = closing.rstrip() or closing
        if text.startswith(ending, stop):
            stop += len(ending)
        spans.append((start, stop))
        open_at_end = last and not closing.strip()
    return spans, open_at_end


def _around(template: ChatTemplate, messages: Sequence[Message], place: int, mark: str) -> tuple[str, str]:
    """What the template writes before and behind the content of one message."""
    marked = [*messages[:place], {**messages[place], "content": mark}, *messages[place + 1 :]]
    parts = template.render(marked).split(mark)
    if len(parts) != 2:
        raise TemplateFailed(f"message {place + 1:,} stands in it {len(parts) - 1:,} times")
    return parts[0], parts[1]


def _prompt(template: ChatTemplate, messages: Sequence[Message]) -> str | None:
    try:
        return template.render(messages, generation_prompt=True)
    except TemplateFailed:  # a template may want a question before anything else
        return None


def marked_ids(tokenizer: Tokenizer, conversation: Conversation, *, end_id: int) -> npt.NDArray[np.uint32]:
    """The tokens of `conversation` and the end token that closes it, `joined` with their marks.

    The text is tokenised as a whole; a token is counted if it begins within a span. An end token that the template
    writes itself at the beginning or at the end is the stream's own, and does not stand there twice.
    """
    encoding = tokenizer.encode(conversation.text, add_special_tokens=False)
    ids = np.array(encoding.ids, dtype=np.int64)
    counted = _within(np.array([start for start, _ in encoding.offsets], dtype=np.int64), conversation.spans)
    if len(ids) and ids[0] == end_id:
        ids, counted = ids[1:], counted[1:]
    if not len(ids) or ids[-1] != end_id:
        ids, counted = np.append(ids, end_id), np.append(counted, conversation.closed_by_end)
    marks = counted.astype(np.uint8) * np.uint8(COUNTED)
    marks[-1] |= CLOSES
    return joined(ids, marks)


def _within(begin: npt.NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    edges = np.array(spans, dtype=np.int64).reshape(-1)
    within: npt.NDArray[np.bool_] = np.searchsorted(edges, begin, side="right") % 2 == 1
    return within

"""Chat templates: a conversation as text, in the words of the tokenizer's own template or of a plain one of ours.

Templates are Jinja2 that others wrote, so they run in a sandbox, with what Transformers gives them, save the date: a
corpus must come out the same tomorrow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from predistill.errors import CorpusError

__all__ = ["PLAIN", "TEMPLATE_FILE", "ChatTemplate", "Message", "TemplateFailed", "chat_template"]

TEMPLATE_FILE = "chat_template.jinja"  # what Transformers calls it
PLAIN = """\
{% for message in messages %}
{% if not loop.first %}{{ '\\n' if message['role'] == 'assistant' else '\\n\\n' }}{% endif %}
{% if message['role'] == 'user' %}{{ 'Question: ' }}{% elif message['role'] == 'assistant' %}{{ 'Answer: ' }}{% endif %}
{{ message['content'] | trim }}
{%- endfor %}
{% if add_generation_prompt %}{{ '\\nAnswer:' }}{% endif %}
"""

Message = Mapping[str, str]


class TemplateFailed(Exception):
    """The template cannot write this conversation, or refuses to."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template's text; `source`: plain, tokenizer, or the name of its file; `words`: the special tokens that it may
    name, such as `eos_token`. Raises `CorpusError` when it is no template."""

    text: str
    source: str
    words: Mapping[str, str]

    def __post_init__(self) -> None:
        _ = self._compiled

    @property
    def is_plain(self) -> bool:
        """Whether it is ours, which writes no special token."""
        return self.text == PLAIN

    @property
    def facts(self) -> dict[str, str]:
        """What a manifest says of it."""
        return {"source": self.source, "sha256": hashlib.sha256(self.text.encode()).hexdigest(), "text": self.text}

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The text of `messages`, with `generation_prompt` up to where the next response begins.

        Raises `TemplateFailed`.
        """
        try:
            return self._compiled.render(
                messages=messages, add_generation_prompt=generation_prompt, tools=None, documents=None, **self.words
            )
        except Exception as error:  # a template may fail in any way that an expression can
            raise TemplateFailed(str(error) or repr(error)) from None

    @cached_property
    def _compiled(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        try:
            return environment.from_string(self.text)
        except jinja2.TemplateSyntaxError as error:
            found = f"line {error.lineno:,} is not a chat template ({error.message})"
            raise CorpusError(f"{self.source}: {found}. Mend it, or name another with --chat-template.") from None


class _Generation(Extension):
    """`{% generation %}` around what a model writes: here only its content, since responses are found without it."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja2 has it)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def chat_template(given: str | Path | None, *, tokenizer: str | Path | None, config: Mapping[str, Any]) -> ChatTemplate:
    """The template in the file `given`, else that of the directory of `tokenizer` (chat_template.jinja, or the
    `chat_template` of `config`, its tokenizer_config.json), else the plain one."""
    named = {name: value["content"] if isinstance(value, dict) else value for name, value in config.items()}
    words = {name: value for name, value in named.items() if name.endswith("_token") and isinstance(value, str)}
    if given is not None:
        return ChatTemplate(_text_of(Path(given)), Path(given).name, words)
    if tokenizer is not None:
        folder = Path(tokenizer) if Path(tokenizer).is_dir() else Path(tokenizer).parent
        beside = folder / TEMPLATE_FILE
        text = _text_of(beside) if beside.is_file() else _configured(config.get("chat_template"))
        if text is not None:
            return ChatTemplate(text, "plain" if text == PLAIN else "tokenizer", words)
    return ChatTemplate(PLAIN, "plain", words)


def _configured(value: Any) -> str | None:
    if isinstance(value, list):  # several by name
        value = {each.get("name"): each.get("template") for each in value}.get("default")
    return value if isinstance(value, str) else None


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError:
        raise CorpusError(f"{path}: no such file. Name a chat template with --chat-template.") from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not a chat template ({error}). Name another with --chat-template.") from None

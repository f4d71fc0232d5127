"""Settings that people write: YAML with `key=value` overrides as plain data, and what is wrong in one sentence."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from predistill.errors import RecipeError, did_you_mean

__all__ = ["load_settings", "overridden", "sentence"]


def load_settings(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file. Raises RecipeError where there is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe. Examples are in recipes/nano/.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {str(error).replace(chr(10), ' ')}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, such as `tokens: 1M`.")
    return content


def overridden(content: dict[str, Any], override: str) -> dict[str, Any]:
    """`content` with one `key.of.a.value=YAML` put in. Raises RecipeError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f'"{override}" is not key=value. Write, for example, lr.peak=1e-3.')
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(
            f"{key}={text}: the value is not readable as YAML. Write, for example, lr.peak=1e-3."
        ) from None
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+e[+-]?[0-9]+", value):
        value = float(value)  # YAML 1.1 reads 1e-3 as a string

    def put(node: Any, names: list[str]) -> Any:
        if not names:
            return value
        if isinstance(node, list) and names[0].isdigit() and int(names[0]) < len(node):
            return [put(item, names[1:]) if str(i) == names[0] else item for i, item in enumerate(node)]
        if isinstance(node, list):
            raise RecipeError(
                f"{key}: {names[0]} is not an index of a list of {len(node)}. Write, for example, corpus.0.path=..."
            )
        if names == ["kind"] and isinstance(node, dict) and node.get("kind") != value:
            return {"kind": value}  # another kind: the fields of the old one do not apply
        node = node if isinstance(node, dict) else {}
        return {**node, names[0]: put(node.get(names[0]), names[1:])}

    return put(content, key.split("."))  # type: ignore[no-any-return]


def sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first of pydantic's findings about `model`, in our words."""
    first = error.errors()[0]
    places = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "union_tag_invalid":
        choices = [choice.strip(" '") for choice in context["expected_tags"].split(",")]
        tag = str(context["tag"])
        return f'{".".join(places)}.kind is "{tag}"{did_you_mean(tag, choices) or "."} One of {", ".join(choices)}.'
    if kind == "union_tag_not_found":
        return f"{'.'.join(places)}: no kind. Write, for example, {places[-1]}: {{kind: ...}}."
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        fields = _fields_at(model, first["loc"][:-1])
        hint = did_you_mean(places[-1], fields) or "."
        return f"{'.'.join(places)} is not a known key{hint} One of {', '.join(fields)}."
    if kind == "missing":
        hint = " Name a Hugging Face directory, a .gguf file, or a finished run." if places[-1] == "model" else ""
        return f"{'.'.join(places)} is missing.{hint}"
    if kind == "value_error":
        return f"{'.'.join(places)}: {context['error']}".removeprefix(": ")
    return f"{'.'.join(places)} is {first['input']!r}: {first['msg'].lower()}."


def _fields_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys allowed at `place`: a path of field names, list indices and kinds through the types of `model`."""
    here: Any = model
    for part in place:
        if isinstance(part, int):
            here = get_args(here)[0]
        elif hasattr(here, "model_fields"):
            here = next(f.annotation for name, f in here.model_fields.items() if part in (name, f.alias))
        else:
            here = next(option for option in get_args(here) if option.kind == part)
        here = get_args(here)[0] if type(None) in get_args(here) else here  # `LogTargets | None`
    if hasattr(here, "model_fields"):
        return [field.alias or name for name, field in here.model_fields.items()]
    return [field.name for field in dataclasses.fields(here)]

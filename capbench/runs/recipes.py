"""The fields of a recipe: their names, values and meanings, and how one is set by hand.

A field of the recipe's training has a dotted name: `training.learning_rate`.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from capbench.base.errors import CapbenchError
from capbench.training.experiment import Recipe

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_WORDS = {"none": "null", "true": "true", "false": "false"}  # how JSON spells what is typed in any case


def values(recipe: Any) -> dict[str, Any]:
    """Every field by its dotted name, in the order of the class.

    >>> from capbench.training.experiment import Training
    >>> values(Training(epochs=3, batch_size=32, learning_rate=0.1))["epochs"]
    3
    """
    found: dict[str, Any] = {}
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        nested = values(value) if is_dataclass(value) else {}
        found |= {f"{field.name}.{name}": inner for name, inner in nested.items()} or {field.name: value}
    return found


def meaning(recipe: Any, name: str) -> str:
    """What a field is, in the words of the comment beside it; empty without one.

    >>> from capbench.training.experiment import Training
    >>> meaning(Training(epochs=3, batch_size=32, learning_rate=0.1), "clip_norm")
    'largest norm of the whole gradient'
    """
    holder, field = _holder(recipe, name)
    return next(filter(None, (_comments(each).get(field) for each in type(holder).__mro__)), "")


def parsed(recipe: Recipe, assignments: Sequence[str]) -> dict[str, JsonValue]:
    """The values of "name=value" texts, as JSON values by name, sorted; those that the recipe has already are left out.

    A value is read as JSON, else as text; none, true and false in any case. Raises CapbenchError naming an unknown
    field, a value of another type or out of bounds, a field that files of the machine decide, or one that is set twice.

    >>> from capbench.training.experiment import Training
    >>> recipe = Recipe(training=Training(epochs=3, batch_size=32, learning_rate=0.1))
    >>> parsed(recipe, ["training.learning_rate=1e-3", "training.epochs=3", "metric=bleu4"])
    {'metric': 'bleu4', 'training.learning_rate': 0.001}
    """
    present, found = values(recipe), dict[str, Any]()
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in present:
            raise _unknown(name, present)
        if name in found:
            raise CapbenchError(f"{name} is set twice; give it one value")
        if name in recipe.of_files and present[name] is None:
            raise CapbenchError(f"{name} is decided by the files of this machine and cannot be set")
        found[name] = _parsed(recipe, name, text)
    return {name: value for name, value in sorted(found.items()) if value != present[name]}


def overridden(recipe: Recipe, overrides: Mapping[str, JsonValue]) -> Recipe:
    """The recipe with some fields set, by dotted name.

    Raises CapbenchError naming a field or value that cannot be, or that would change nothing or not what it says.
    """
    present = values(recipe)
    for name, value in overrides.items():
        if name not in present:
            raise _unknown(name, present)
        recipe = _set(recipe, name.split("."), _checked(recipe, name, value))
    return recipe


def _set(holder: Any, path: Sequence[str], value: Any) -> Any:
    first, *rest = path
    return replace(holder, **{first: _set(getattr(holder, first), rest, value) if rest else value})


def _parsed(recipe: Recipe, name: str, text: str) -> Any:
    try:
        value: JsonValue = json.loads(_WORDS.get(text.lower(), text))
    except ValueError:
        value = text
    if not _fits(recipe, name, value) and _fits(recipe, name, text):  # a text that reads as a number
        value = text
    return _checked(recipe, name, value)


def _fits(recipe: Recipe, name: str, value: JsonValue) -> bool:
    try:
        _checked(recipe, name, value)
    except CapbenchError:
        return False
    return True


def _checked(recipe: Recipe, name: str, value: JsonValue) -> Any:
    """A JSON value as the field's type has it. Raises CapbenchError that says what the field takes."""
    holder, field = _holder(recipe, name)
    wanted = get_type_hints(type(holder), include_extras=True)[field]
    try:
        return TypeAdapter(wanted, config=_STRICT).validate_json(json.dumps(value))
    except ValidationError as error:
        reasons = "; ".join(dict.fromkeys(item["msg"] for item in error.errors()))
        raise CapbenchError(f"{name} cannot be {value!r}: {reasons.replace('Input', 'it')}") from error


def _unknown(name: str, present: Mapping[str, Any]) -> CapbenchError:
    near = get_close_matches(name, present)
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    return CapbenchError(f"the recipe has no field {name!r}; {suggestion}`capbench show PRESET` lists all")


def _holder(recipe: Any, name: str) -> tuple[Any, str]:
    """The dataclass that has a field of a dotted name, and the field's own name."""
    *path, field = name.split(".")
    for part in path:
        recipe = getattr(recipe, part)
    return recipe, field


@cache
def _comments(owner: type) -> dict[str, str]:
    """The comments beside the fields of a dataclass, from its source."""
    if not is_dataclass(owner):
        return {}
    source = inspect.getsource(owner)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    beside = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {name: beside[line] for name, line in _fields_by_line(source) if line in beside}


def _fields_by_line(source: str) -> Iterator[tuple[str, int]]:
    (owner,) = ast.parse(inspect.cleandoc(source) if source[0].isspace() else source).body
    for node in getattr(owner, "body", ()):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.end_lineno or node.lineno

"""A method's settings as options of a command line: names, types, choices and help come from their dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from teacherfarm.student.methods.method import Method

PREFIX = "method."
"""Of the settings' names among the parsed options: a method may have a setting that is called like an option."""


def add_settings(parser: argparse.ArgumentParser, method: type[Method]) -> dict[str, str]:
    """One option for each setting; those that the command line has itself are called ``--METHOD-SETTING``.

    What is not given is not among the parsed options. Returns the settings' names with those of their options.
    """
    about = textwrap.fill(f"{method.about} ({method.paper})", 100, subsequent_indent="  ")
    group = parser.add_argument_group(f"settings of {method.name}", about)
    hints = typing.get_type_hints(method.Settings)
    called = {}
    for setting in dataclasses.fields(method.Settings):
        option = setting.name.replace("_", "-")
        arguments: dict[str, Any] = {
            "dest": PREFIX + setting.name,
            "default": argparse.SUPPRESS,
            "help": f"{setting.metadata['help']} (default: {words(setting.default)})".replace("%", "%%"),
            **_arguments(hints[setting.name], setting.metadata.get("choices")),
        }
        try:
            added = group.add_argument(f"--{option}", **arguments)
        except argparse.ArgumentError:
            added = group.add_argument(f"--{method.name}-{option}", **arguments)
        called[setting.name] = added.option_strings[0]
    return called


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, by name."""
    return dict(_given(options))


def make_settings(method: type[Method], given: Mapping[str, Any]) -> Any:
    """The method's settings. Raises ValueError for one that it does not have, or that it refuses."""
    known = {setting.name: setting for setting in dataclasses.fields(method.Settings)}
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"method {method.name} has no setting {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    for name, value in given.items():
        choices = known[name].metadata.get("choices")
        if choices is not None and value not in choices:
            raise ValueError(
                f"{name} of method {method.name} is one of {', '.join(map(words, choices))}, got {value!r}"
            )
    return method.Settings(**given)


def words(value: object) -> str:
    """A setting's value as it would be typed."""
    if isinstance(value, tuple):
        return " ".join(map(words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _given(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    for name, value in vars(options).items():
        if name.startswith(PREFIX):
            yield name.removeprefix(PREFIX), tuple(value) if isinstance(value, list) else value


def _arguments(kind: Any, choices: Any) -> dict[str, Any]:
    """What argparse is told of a type: bool, int, float, str, Literal, a tuple of one of them, or one or None."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        (kind,) = (one for one in inner if one is not type(None))
        return _arguments(kind, choices)
    if origin is tuple:
        several = "+" if Ellipsis in inner else len(inner)
        return {**_arguments(inner[0], choices), "nargs": several}
    if origin is Literal:
        return {"choices": list(inner), "type": type(inner[0])}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind not in (int, float, str):
        raise TypeError(f"a setting of type {kind} cannot be typed on a command line")
    arguments: dict[str, Any] = {"type": kind}
    return {**arguments, "choices": list(choices)} if choices else {**arguments, "metavar": kind.__name__[0].upper()}

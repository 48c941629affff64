"""A run's options as YAML: files and named presets in, ``config.yaml`` out. Imports no torch.

A file holds the options' long names without dashes, and the method's settings below ``settings``::

    method: simkd
    settings: {factor: 2}
    epochs: 240
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"
DEFAULT_METHOD = "fkd"
PRESETS = Path(__file__).parent / "presets"
OF_ONE_START = frozenset({"api_key", "resume", "config", "preset", "debug", "command"})
"""What is no part of a run's description: a secret, and what is said anew at each start."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a file says. ``method``: "" where it names none."""

    source: str
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the rest of a command line depends on; ``configs``: the preset's first, then the file's."""

    method: str
    configs: tuple[RunConfig, ...]


def look_ahead(arguments: Sequence[str]) -> Chosen:
    """Which method, preset and file a command line names. Raises ValueError for a preset that does not exist."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--method", "--preset", "--config"):
        parser.add_argument(option, nargs="?", default="")
    named, _ = parser.parse_known_args(list(arguments))
    configs = []
    if named.preset:
        configs.append(read_preset(named.preset))
    if named.config:
        configs.append(read_config(Path(named.config)))
    method = named.method or next((config.method for config in reversed(configs) if config.method), "")
    return Chosen(method=method, configs=tuple(configs))


def preset_names() -> tuple[str, ...]:
    """The papers' recipes that come along."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.yaml")))


def read_preset(name: str) -> RunConfig:
    """One of them. Raises ValueError with the known ones."""
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, cutoff=0.4)
        raise ValueError(f"there is no preset {name!r}; {_meant(near)}known: {', '.join(names)}")
    return read_config(PRESETS / f"{name}.yaml")


def read_config(path: Path) -> RunConfig:
    """Raises ValueError where the file is no mapping of options."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("settings", {}) or {}, dict):
        raise ValueError(f"{path} must map options to values, and the method's settings below 'settings'")
    options = {str(key).replace("_", "-"): value for key, value in values.items() if key not in ("method", "settings")}
    return RunConfig(
        source=str(path),
        method=str(values.get("method") or ""),
        settings=values.get("settings") or {},
        options=options,
    )


def apply_config(parser: argparse.ArgumentParser, config: RunConfig, method: str, prefix: str) -> None:
    """Make what the file says the options' defaults; settings only where they are this method's.

    ``prefix``: of the settings' names among the options. Raises ValueError naming the file for what is unknown or of
    another type.
    """
    actions = {action.dest: action for action in parser._actions}
    given = {name.replace("-", "_"): value for name, value in config.options.items()}
    if not config.method or config.method == method:
        given |= {prefix + str(name).replace("-", "_"): value for name, value in config.settings.items()}
    for name, value in given.items():
        if name not in actions or name in OF_ONE_START:
            shown = name.removeprefix(prefix).replace("_", "-")
            known = [dest.removeprefix(prefix).replace("_", "-") for dest in actions if dest not in OF_ONE_START]
            raise ValueError(
                f"{config.source} has an unknown option {shown!r}; "
                f"{_meant(difflib.get_close_matches(shown, known))}teacherfarm distill --help lists them"
            )
        if value is not None:
            parser.set_defaults(**{name: _value(actions[name], value, f"{config.source}: {name.removeprefix(prefix)}")})
            actions[name].required = False


def write_config(path: Path, options: argparse.Namespace, method: str, settings: Mapping[str, Any], prefix: str) -> str:
    """Write what ``--config`` reads back to the same run, and return it."""
    import yaml

    plain = {
        name.replace("_", "-"): _plain(value)
        for name, value in vars(options).items()
        if name not in OF_ONE_START and name != "method" and not name.startswith(prefix) and value is not None
    }
    values = {"method": method, "settings": {name: _plain(value) for name, value in settings.items()}, **plain}
    text = str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return text


def _value(action: argparse.Action, value: Any, where: str) -> Any:
    """A value from YAML as the option would have taken it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{where} is true or false, got {value!r}")
        return value
    if action.nargs in (None, "?"):
        return _one(action, value, where)
    values = value if isinstance(value, list) else [value]
    if isinstance(action.nargs, int) and len(values) != action.nargs:
        raise ValueError(f"{where} takes {action.nargs} values, got {value!r}")
    return [_one(action, one, where) for one in values]


def _one(action: argparse.Action, value: Any, where: str) -> Any:
    kind: Any = action.type or str
    if isinstance(value, (dict, list)) or (isinstance(value, bool) and kind in (int, float)):
        raise ValueError(f"{where} is one value, got {value!r}")
    try:
        taken = kind(str(value))
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{where} must be {getattr(kind, '__name__', kind)}, got {value!r}") from error
    if action.choices is not None and taken not in action.choices:
        raise ValueError(f"{where} is one of {', '.join(map(str, action.choices))}, got {value!r}")
    return taken


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _meant(near: Sequence[str]) -> str:
    return f"did you mean {near[0]!r}? " if near else ""

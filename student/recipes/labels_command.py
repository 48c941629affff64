"""The command line of ``teacherfarm labels``: finds the action, and loads that one's module alone.

Knows the actions' names and modules; what they take and do is theirs.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from typing import Any

DESCRIPTION = """\
Soft labels that were kept: what a server's label store holds, a data set's recorded labels, and other projects' files.
"""


@dataclass(frozen=True, kw_only=True)
class Action:
    """One action; its module has ``add_arguments(parser)`` and ``main(options) -> int``, as every command's."""

    name: str
    module: str
    about: str


ACTIONS = (
    Action(
        name="stats",
        module="teacherfarm.student.recipes.labels_stats",
        about="what a label store or recorded labels hold",
    ),
    Action(
        name="verify",
        module="teacherfarm.student.recipes.labels_verify",
        about="check every kept label against its checksum",
    ),
    Action(
        name="seal",
        module="teacherfarm.student.recipes.labels_seal",
        about="take the journals of ended or killed writers into recorded labels' shards",
    ),
    Action(
        name="push",
        module="teacherfarm.student.recipes.labels_push",
        about="publish recorded labels to any place that fsspec reaches",
    ),
    Action(
        name="evict",
        module="teacherfarm.student.recipes.labels_evict",
        about="take labels out of a store: by age, project or teacher, or all",
    ),
    Action(
        name="study",
        module="teacherfarm.student.recipes.study_command",
        about="what a label and a crop may weigh before it hurts: bytes against divergence, on your images",
    ),
    Action(
        name="calibrate",
        module="teacherfarm.student.recipes.labels_calibrate_command",
        about="recorded labels as FerKD prepares them: extreme crops left out, background by its own class",
    ),
    Action(
        name="import",
        module="teacherfarm.student.recipes.labels_import_command",
        about="make recorded labels of FKD's, ReLabel's or TinyViT's files",
    ),
    Action(
        name="export",
        module="teacherfarm.student.recipes.labels_export_command",
        about="write recorded labels as FKD's label files",
    ),
)


class LazyParser(argparse.ArgumentParser):
    """The parser of one action, which learns its arguments when it is chosen: help of the others loads nothing."""

    module = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        module, self.module = self.module, ""
        if module:
            loaded = importlib.import_module(module)
            loaded.add_arguments(self)
            self.set_defaults(run=loaded.main)
        return super().parse_known_args(args, namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions; each says by ``run`` what it does."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(
        dest="action",
        metavar="ACTION",
        title="actions",
        required=True,
        parser_class=LazyParser,
    )
    for action in ACTIONS:
        own = actions.add_parser(action.name, help=action.about)
        own.description = action.about[0].upper() + action.about[1:] + "."
        own.module = action.module


def main(options: argparse.Namespace) -> int:
    """Run the chosen action. Raises ValueError for a mistake."""
    return int(options.run(options))

"""What a Dockerfile says about its image: entry point, environment, user, and what it copies from the checkout."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True)
class Image:
    """The last stage. ``copied``: paths of the build context, of all stages. ``owners``: folder -> its owner's uid."""

    entrypoint: tuple[str, ...]
    environment: dict[str, str]
    user: str
    copied: tuple[str, ...]
    bases: tuple[str, ...]
    owners: dict[str, int]
    instructions: tuple[tuple[str, str], ...]


def read_dockerfile(file: Path) -> Image:
    """Read ``file``; lines that end in a backslash go on."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    instructions = tuple((line.split(None, 1)[0].upper(), line.split(None, 1)[1]) for line in lines)
    arguments: dict[str, str] = {}
    copied: list[str] = []
    bases: list[str] = []
    entrypoint: tuple[str, ...] = ()
    environment, owners, user = {"PATH": BASE_PATH}, {}, "root"
    for keyword, rest in instructions:
        if keyword == "ARG":
            name, _, default = rest.partition("=")
            arguments[name] = default
        elif keyword == "FROM":
            bases.append(re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], rest.split()[0]))
            entrypoint, environment, owners, user = (), {"PATH": BASE_PATH}, {}, "root"
        elif keyword == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                environment[name] = value.replace("$PATH", environment["PATH"])
        elif keyword == "COPY" and not rest.startswith("--from"):
            copied += shlex.split(rest)[:-1]
        elif keyword == "RUN":
            for owner, folder in re.findall(r"install --directory --owner (\d+) [^&]*? (/\S+)", rest):
                owners[folder] = int(owner)
        elif keyword == "USER":
            user = rest
        elif keyword == "ENTRYPOINT":
            entrypoint = tuple(json.loads(rest))
    return Image(
        entrypoint=entrypoint,
        environment=environment,
        user=user,
        copied=tuple(copied),
        bases=tuple(bases),
        owners=owners,
        instructions=instructions,
    )

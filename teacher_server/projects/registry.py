"""The projects of a running server: who a key belongs to, now. A reload changes them in place, under open sessions."""

from __future__ import annotations

from collections.abc import Iterable

from teacherfarm.protos.faults import Unauthenticated
from teacherfarm.teacher_server.projects.api_keys import find_holder
from teacherfarm.teacher_server.projects.project import Project
from teacherfarm.teacher_server.projects.projects_file import ProjectEntry

EVERYBODY = "default"
"""The one project of a server that asks for no keys."""


class Projects:
    """``entries``: what the projects file says, or None for a server without one: everybody is the same project.

    ``most_sessions``: what the server takes; a project without a limit of streams gets an equal share of them, so that
    none can shut out the others.
    """

    def __init__(self, entries: Iterable[ProjectEntry] | None = None, *, most_sessions: int = 0) -> None:
        self._most_sessions = most_sessions
        self._everybody = Project(name=EVERYBODY) if entries is None else None
        self._projects: dict[str, Project] = {}
        self._holders: dict[str, Project] = {}
        self.update(entries or ())

    def __repr__(self) -> str:
        return f"<Projects {', '.join(self._projects) or EVERYBODY}, {len(self._holders)} key(s)>"

    def update(self, entries: Iterable[ProjectEntry]) -> None:
        """From now on the file says this. A project that stays keeps its accounts."""
        projects: dict[str, Project] = {}
        holders: dict[str, Project] = {}
        for entry in entries:
            project = projects[entry.name] = self._projects.get(entry.name) or Project(name=entry.name)
            project.allow(entry.allowance)
            holders.update(dict.fromkeys(entry.keys, project))
        self._projects, self._holders = projects, holders

    def authenticate(self, api_key: str) -> tuple[Project, str]:
        """The project that a key belongs to, and the key's digest. Raises Unauthenticated, in the same words for every
        key that is not valid.
        """
        if self._everybody is not None:
            return self._everybody, ""
        if not api_key:
            raise Unauthenticated(
                "this farm asks for an API key: set TEACHERFARM_API_KEY or give api_key=; the farm's owner makes one "
                "with 'teacherfarm keys create PROJECT'"
            )
        found = find_holder(api_key, self._holders)
        if found is None:
            raise Unauthenticated(
                "this farm does not accept this API key: check that it was copied whole and is meant for this farm, or "
                "ask the farm's owner for a new one"
            )
        digest, project = found
        return project, digest

    def admits(self, project: Project, key_digest: str) -> bool:
        """Whether this key still belongs to this project."""
        return project is self._everybody or self._holders.get(key_digest) is project

    def most_streams(self, project: Project) -> int:
        """How many sessions a project may have open; 0 is no limit."""
        if project.allowance.streams or not self._most_sessions or project is self._everybody:
            return project.allowance.streams
        return max(1, self._most_sessions // max(1, len(self._projects)))

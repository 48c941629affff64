"""A real Prometheus in a process of its own, with this project's configuration, asking servers that a test started."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from tests.real_parts import absent

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "deploy" / "prometheus"
START_S = 30.0
END_S = 20.0
POLL_S = 0.05
INTERVAL = "200ms"


def find_program(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``; skips the test where it is not installed, but never in CI."""
    program = shutil.which(name)
    if program is None:
        absent(f"{name} is not installed (Debian: apt-get install prometheus)")
    return program


class PrometheusServer:
    """``targets``: HOST:PORT of what each job scrapes, in place of the names that Compose's network resolves.

    Everything else is deploy/prometheus as it is, but scraped and evaluated five times a second.
    """

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]]) -> None:
        self._program = find_program("prometheus")
        self._folder = folder
        self._targets = targets
        self._log = folder / "prometheus.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def __enter__(self) -> Self:
        configuration = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())
        configuration["global"] |= {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL}
        configuration["global"]["evaluation_interval"] = INTERVAL
        configuration["rule_files"] = [str(CONFIGURATION / name) for name in configuration["rule_files"]]
        jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
        for name, job in jobs.items():
            del job["dns_sd_configs"]
            job["static_configs"] = [{"targets": list(self._targets.get(name, ()))}]
        assert self._targets.keys() <= jobs.keys()
        file = self._folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(configuration))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    self._program,
                    f"--config.file={file}",
                    f"--storage.tsdb.path={self._folder / 'measurements'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdout=log,
                stderr=log,
            )
        threading.Thread(target=self.process.wait, daemon=True).start()
        self._wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP interface. AssertionError where it refuses the question."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The samples of an expression now: labels and value."""
        found = self.ask("query", query=expression)
        assert found["resultType"] == "vector", found
        return [(sample["metric"], float(sample["value"][1])) for sample in found["result"]]

    def value(self, expression: str) -> float | None:
        """The only sample's value, or None where there is none."""
        samples = self.query(expression)
        assert len(samples) <= 1, samples
        return samples[0][1] if samples else None

    def log(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")

    def _wait_ready(self) -> None:
        end_s = time.monotonic() + START_S
        while not self._is_ready():
            assert self.process is not None
            assert self.process.poll() is None, f"prometheus ended:\n{self.log()}"
            assert time.monotonic() < end_s, f"prometheus was not ready after {START_S:g} s:\n{self.log()}"
            time.sleep(POLL_S)

    def _is_ready(self) -> bool:
        _, found, rest = self.log().partition('msg="Listening on" address=')
        if not found or "\n" not in rest:
            return False
        self.address = rest.splitlines()[0].strip()
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

"""A student of the scripted teacher in a process of its own, which tests can stop, stall and kill."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import Self

from teacherfarm.student import TeacherClient
from tests.farm_process import ROOT
from tests.scripted_farm import make_crops, right_classes

BATCH = 16
STARTED, DONE = "labels come\n", "all labels right\n"


class SomeStudent:
    """Starts it and waits for its first labels."""

    def __init__(self, address: str, *, num_batches: int, size: int = 32, num_classes: int = 10) -> None:
        arguments = [address, str(num_batches), str(size), str(num_classes)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.some_student", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == STARTED
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def finish(self) -> None:
        """Wait until it has all its labels, and they are right."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == DONE
        assert self.process.wait(30) == 0


def main(address: str, num_batches: str, size: str, num_classes: str) -> None:
    """Ask for everything at once, then check."""
    with TeacherClient(address, window=1 << 20) as teacher:
        batches = [make_crops(BATCH, seed, int(size)) for seed in range(int(num_batches))]
        answers = [teacher.submit(crops) for crops in batches]
        for number, (crops, answer) in enumerate(zip(batches, answers, strict=True)):
            assert (answer.result().top1 == right_classes(crops, int(num_classes))).all()
            if not number:
                print(STARTED, end="", flush=True)
        assert teacher.stats.crops_answered == BATCH * int(num_batches)
    print(DONE, end="", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

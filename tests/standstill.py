"""Processes that are made to stand still, connections and all."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any


def stand_still(process: subprocess.Popen[Any]) -> None:
    """SIGSTOP, and wait until its last thread stands: on a busy machine one may go on for a while after the signal.

    SIGCONT lets it go on.
    """
    assert process.poll() is None, f"process {process.pid} has ended: {process.returncode}"
    process.send_signal(signal.SIGSTOP)
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state is not None
    assert state.si_code == os.CLD_STOPPED, f"process {process.pid} has ended: {state.si_status}"

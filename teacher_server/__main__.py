"""``teacherfarm serve``: reads the settings, sets up logging, runs the server until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time

from teacherfarm.protos.allocator import keep_large_buffers
from teacherfarm.protos.faults import TeacherFarmFault
from teacherfarm.teacher_server.settings import ServerSettings, add_arguments, load_settings

__all__ = ["add_arguments", "main"]


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "from": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up_logging(settings: ServerSettings) -> None:
    """Logs go to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines() if settings.log_json else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)


def main(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; 0 after a clean drain, 1 when the server could not start, 2 for bad settings."""
    try:
        settings = load_settings(options)
    except ValueError as error:
        print(f"teacherfarm serve: {error}", file=sys.stderr)
        return 2
    set_up_logging(settings)
    keep_large_buffers()
    # Only now: reading settings must not need onnxruntime, grpc or zmq.
    from teacherfarm.teacher_server.server import Server

    started_s = time.monotonic()

    def announce(server: Server) -> None:
        print(f"ready after {time.monotonic() - started_s:.1f} s: {' '.join(server.addresses())}", flush=True)

    try:
        try:
            server = Server(settings)
        except ValueError as error:
            # A file that a setting names: of projects, a certificate, keys.
            print(f"teacherfarm serve: {error}", file=sys.stderr)
            return 2
        asyncio.run(server.run_until_signalled(announce))
    except (TeacherFarmFault, OSError) as fault:
        print(f"teacherfarm serve: {type(fault).__name__}: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="teacherfarm serve", description=__doc__)
    add_arguments(parser)
    sys.exit(main(parser.parse_args()))

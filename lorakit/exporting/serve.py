"""A tuned model behind an OpenAI-compatible endpoint on this machine, for a first try: `transformers serve` over it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.exporting.round_trip import RECORD, export, source
from lorakit.machine.hardware import child_environment
from lorakit.machine.packages import require
from lorakit.run import Run
from lorakit.runs.folder import Folder

HOST = "127.0.0.1"


def serve(path: str | os.PathLike, port: int = 8000) -> int:
    """Serves until it is stopped, and returns the server's exit code. The merged model is made on the first call.

    Raises `LorakitError` for a classifier, and where the server's packages are missing or the port is taken.
    """
    if source(path).classes:
        raise LorakitError(
            f"{path}: a classifier answers no chat; ask it by lorakit ask, or export it --to onnx"
        )
    require("fastapi", "uvicorn", "openai", purpose="the server")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise LorakitError(
                f"port {port} of {HOST} cannot be taken ({error.strerror}); name another with --port"
            ) from None
    folder = merged(path)
    print(f"http://{HOST}:{port}/v1 answers as model '{folder.name}'; Ctrl-C ends it", flush=True)
    command = [
        sys.executable,
        "-m",
        "lorakit.exporting.limited_server",
        "serve",
        folder.name,
        "--host",
        HOST,
        "--port",
        str(port),
    ]
    return subprocess.call(command, cwd=folder.parent, env=child_environment())


def merged(path: str | os.PathLike) -> Path:
    """The run's merged export in the precision that it was tuned in; made now where there is none of these weights."""
    folder = Folder.of(path)
    kind = Run.read(folder / "run.yaml").precision
    out = folder / "export" / f"merged-{kind}"
    made = out / RECORD
    if made.is_file() and made.stat().st_mtime >= (folder / "record.json").stat().st_mtime:
        return out
    return export(folder.path, "merged", type=kind)

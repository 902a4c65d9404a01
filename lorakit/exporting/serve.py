"""A tuned model behind an OpenAI-compatible endpoint on this machine, for a first try: `transformers serve` over it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.exporting.messages import read
from lorakit.exporting.round_trip import export
from lorakit.exporting.source import source
from lorakit.machine.hardware import child_environment
from lorakit.machine.packages import require
from lorakit.models import identity
from lorakit.results.evidence import trust
from lorakit.results.evidence.form import taught, unknown_form
from lorakit.run import Run
from lorakit.runs.folder import Folder

HOST = "127.0.0.1"
STARTS_IN = 120  # seconds


def serve(
    path: str | os.PathLike, port: int = 8000, *, model: str | None = None, held: bool = False
) -> int:
    """Serves until it is stopped, and returns the server's exit code. The merged model is made on the first call.

    `held`: answers are held to the form that `lorakit form` found. What else was measured of the run goes along, see
    `lorakit.exporting.answering`.

    Raises `LorakitError` for a classifier, where no form is known, where the server's packages are missing, and where
    the port is taken.
    """
    if held and taught(Folder.of(path)) is None:
        raise unknown_form(path)
    if source(path, model=model).classes:
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
    folder = merged(path, model)
    print(f"http://{HOST}:{port}/v1 answers as model '{folder.name}'; Ctrl-C ends it", flush=True)
    if trust.known(Folder.of(path)):
        print(
            'Each answer says whether to ask a person: "lorakit": {"ask_a_person": …}', flush=True
        )
    command = _command(path, folder, port, held)
    return subprocess.call(command, cwd=folder.parent, env=child_environment())


@contextlib.contextmanager
def serving(path: str | os.PathLike, *, model: str | None = None) -> Iterator[tuple[str, str]]:
    """A server of this run for the time of a `with` block: (address that ends in /v1, name of the model).

    It takes a free port. Raises `LorakitError` as `serve` does, and where it does not come up in `STARTS_IN` seconds.
    """
    require("fastapi", "uvicorn", "openai", purpose="the server")
    folder = merged(path, model)
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            _command(path, folder, port),
            cwd=folder.parent,
            env=child_environment(),
            stdout=log,
            stderr=log,
        )
        try:
            until = time.monotonic() + STARTS_IN
            while not _answers(port):
                if child.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    last = log.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise LorakitError(f"the server of {path} did not come up", value=last)
                time.sleep(0.2)
            yield f"http://{HOST}:{port}/v1", folder.name
        finally:
            child.terminate()
            child.wait()


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex((HOST, port)) == 0


def _command(path: str | os.PathLike, folder: Path, port: int, held: bool = False) -> list[str]:
    """Of the server over a merged `folder` of the run `path`."""
    return [
        sys.executable,
        "-m",
        "lorakit.exporting.limited_server",
        str(Path(path).resolve()),
        *(["--form"] if held else []),
        "serve",
        folder.name,
        "--host",
        HOST,
        "--port",
        str(port),
    ]


def merged(path: str | os.PathLike, model: str | None = None) -> Path:
    """The run's merged export in the precision that it was tuned in; made now where there is none of these weights."""
    folder = Folder.of(path)
    type_ = Run.read(folder / "run.yaml").precision
    out = folder / "export" / f"merged-{type_}"
    if _is_of_these_weights(out, folder):
        return out
    return export(folder.path, "merged", type=type_, model=model)


def _is_of_these_weights(out: Path, folder: Folder) -> bool:
    """Whether an export lies there whole, and was made of the run's saved files as they are now."""
    try:
        content = read(out)
    except LorakitError:
        return False
    recorded = {name: each["sha256"] for name, each in content.get("files", {}).items()}
    names = [name for name in recorded if (out / name).is_file()]
    return (
        len(names) == len(recorded)
        and identity.files(out, names) == recorded
        and content.get("run_files") == folder.record.get("files")
    )

"""The same run in a child process: it goes on when the tab is closed or the kernel dies. Files are the only channel."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from lorakit.common.errors import LorakitError
from lorakit.common.processes import machine, part
from lorakit.machine.distributed import LOST, UNMET
from lorakit.machine.hardware import child_environment
from lorakit.run import Run
from lorakit.runs.folder import RunFolder, write_json
from lorakit.runs.status import Status, derive
from lorakit.training import gpu_queue

NOISE = re.compile(r"\s|.*%\||\S+:\d+: \w*Warning: |\[rank\d+\]:\[W")  # bars and warnings


class Job:
    """A run that trains elsewhere, known by its folder alone."""

    def __init__(self, path: str | os.PathLike, child: subprocess.Popen | None = None):
        self.folder, self._child = RunFolder(path), child

    @property
    def status(self) -> Status:
        """queued, running, interrupted, stopped, failed or done."""
        return derive(
            self.folder.record["status"],
            locked=True,  # the record says already where nobody holds the lock
            waiting=self.queued is not None,
            child=self._child is not None,
            exit_code=self._child.poll() if self._child else None,
        )

    @property
    def running(self) -> bool:
        if self._child is not None and self._child.poll() is None:
            return True
        return self.folder.busy or bool(self.queued)

    @property
    def queued(self) -> gpu_queue.Waiting | None:
        """Its ticket, while it waits for a card."""
        return gpu_queue.place_of(_named(self.folder))

    def log(self, lines: int = 12) -> str:
        """The last lines that the child process printed."""
        path = self.folder.log
        text = (
            path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
            if path.exists()
            else ""
        )
        return "\n".join([x for x in text.splitlines() if x.strip()][-lines:])

    def watch(self, every: float = 1.0) -> Job:
        """Draws the curve until the run ends. Interrupting the cell stops the run with a checkpoint."""
        from lorakit.notebook.live import Panel

        panel = Panel(self.folder)
        try:
            while self.running:
                panel.draw(self.status)
                time.sleep(every)
        except KeyboardInterrupt:
            self.stop()
            panel.draw(self.status, last=True)
            return self
        panel.draw(self.status, last=True)
        if self.status in (Status.FAILED, Status.INTERRUPTED):
            raise LorakitError(
                f"{self.folder.path}: {self.status}. The last lines of its log:\n{self.log()}"
            )
        return self

    def stop(self, seconds: float = 60) -> Job:
        """Asks the run to end with a checkpoint; starting it again goes on from there.

        Raises `LorakitError` for a run of another machine: its process number means another process here.
        """
        end, asked = time.monotonic() + seconds, False
        while self.running and time.monotonic() < end:
            with contextlib.suppress(ProcessLookupError):
                if not asked and (pid := self._first()):
                    os.kill(pid, signal.SIGTERM)
                    asked = True
            time.sleep(0.1)
        return self

    def _first(self) -> int | None:
        """The process to ask: the first of the run, or our child as long as that has not noted itself.

        Until then the record may hold the process of an earlier run.
        """
        if ticket := self.queued:
            return ticket.pid
        record = self.folder.record
        noted = record["pid"] if record["status"] == Status.RUNNING else None
        if self._child is None:
            if noted and record.get("host", machine()) != machine():
                raise LorakitError(
                    "trains on another machine that shares this disk",
                    where=self.folder.path,
                    cure="stop it there",
                )
            return noted
        with contextlib.suppress(psutil.Error):
            if noted in [p.pid for p in psutil.Process(self._child.pid).children(recursive=True)]:
                return noted
        return self._child.pid

    def result(self) -> dict[str, Any]:
        """Scores of a finished run. Raises `LorakitError` when it is not done."""
        if self.status != Status.DONE:
            raise LorakitError(f"{self.folder.path}: is {self.status}, not done\n{self.log()}")
        return self.folder.scores


def _named(folder: RunFolder) -> str:
    return str(folder.path.resolve())


def launch(run: Run, *, queued: bool = False) -> Job:
    """Starts the run in a process group of its own. A run that is already running is attached to instead.

    `queued`: it waits for a free card, behind those that wait already (see `gpu_queue`); else it starts at once.
    """
    folder = _made(run)
    if folder.busy or gpu_queue.place_of(_named(folder)):
        differing = run.differences(Run(**folder.record.get("settings", run.model_dump())))
        if differing:
            raise LorakitError(
                f"{folder.path}: a run with other settings is running there ({', '.join(differing)}); "
                "give this one another name, or stop that one"
            )
        return Job(folder.path)
    write_json(folder.asked, run.given())
    with open(folder.log, "ab") as log:
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "lorakit.cli",
                "train",
                str(folder.asked),
                *(["--queue"] if queued else []),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment(),
            start_new_session=True,
        )
    while (
        child.poll() is None
        and not folder.busy
        and not (queued and gpu_queue.place_of(_named(folder)))
    ):
        time.sleep(0.05)
    return Job(folder.path, child)


def _made(run: Run) -> RunFolder:
    """The folder of a run, there to be written into."""
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LorakitError(
            f"{run.folder}: cannot be written ({error.strerror}); name another output_dir"
        ) from None
    return RunFolder(run.folder)


def together(run: Run, count: int) -> str:
    """Runs `count` processes through torchrun's own launcher and waits. One that dies ends all of them.

    Returns "", or why one process shall try instead, as `processes: auto` allows when several did not get to work.
    Raises `LorakitError` with the last words of the one that died first.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    folder = _made(run)
    logs = folder / f"processes{part()}"  # swept where this process does not live to remove it
    write_json(folder.asked, run.given())
    config = _on_this_machine(count, folder.path.name, logs)
    before, record = len(folder.history()[0]), folder.record
    try:
        with _undone():
            os.environ.update(
                child_environment()
                | {
                    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
                    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300",
                }
            )  # seconds for the update in progress and its checkpoint
            elastic_launch(config, sys.executable)("-m", "lorakit.cli", "train", str(folder.asked))
        return ""
    except SignalException:
        died = ""
    except ChildFailedError as error:
        died = _died(error.failures, logs, count)
    finally:
        shutil.rmtree(logs, ignore_errors=True)
    print(file=sys.stderr)  # a bar that was cut has no end of line
    now = folder.record
    if not died and now["status"] == Status.FAILED and now != record:
        raise LorakitError(now["error"])
    if not died:
        print(f"asked to stop; {folder.path} is {folder.record['status']}", file=sys.stderr)
        return ""
    if run.processes == "auto" and len(folder.history()[0]) == before:
        print(f"{died}. Going on with one process", file=sys.stderr)
        return f"{count} did not get to work: {died}"
    died += ". The others were ended with it. Start again: the run goes on from its checkpoint"
    if folder.record["status"] == Status.INTERRUPTED:  # else it says why itself
        with folder.locked():
            folder.note(status=Status.INTERRUPTED, error=died)
    raise LorakitError(died)


def _on_this_machine(count: int, name: str, logs: Path) -> Any:
    """torchrun's settings for `count` processes that meet here; the first one's output is shown."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), tee=Std.ALL, local_ranks_filter={0}),
        log_line_prefix_template=" ",
    )


def _died(failures: dict[int, Any], logs: Path, count: int) -> str:
    """Which process died first, how, and its last words; "" when all were only asked to end.

    Raises `LorakitError` with those words when they are a cause that the process has found itself.
    """
    # Who lost the others, or was ended with them, is not the one that died.
    *_, rank, code = min(
        (LOST in _last_words(logs, n) or f.exitcode == -signal.SIGTERM, f.timestamp, n, f.exitcode)
        for n, f in failures.items()
    )
    words, who = _last_words(logs, rank), f"process {rank} of {count}"
    if words.startswith("lorakit: ") and not any(w in words for w in (LOST, UNMET)):
        raise LorakitError(words.removeprefix("lorakit: ")) from None
    if code == -signal.SIGTERM:
        return ""
    if code == -signal.SIGKILL:
        return (
            f"{who} was killed by SIGKILL, as happens when memory runs out, and could say nothing"
        )
    how = (
        f"ended with exit code {code}"
        if code >= 0
        else f"was killed by {signal.Signals(-code).name}"
    )
    return f"{who} {how}. Its last words: {words or 'none'}"


@contextlib.contextmanager
def _undone() -> Iterator[None]:
    """What the launcher does to this process: its environment, its signal handlers, its loggers' words."""
    environment, main = dict(os.environ), threading.current_thread() is threading.main_thread()
    handlers = (
        {
            kind: signal.getsignal(kind)
            for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
        }
        if main
        else {}
    )
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(
                logging.CRITICAL
            )  # it repeats in its own way what is said here
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for kind, handler in handlers.items():
            signal.signal(kind, handler)


def _last_words(logs: Path, rank: int) -> str:
    """The last line that a process wrote to its standard error, bars and warnings aside."""
    lines = [
        line
        for path in sorted(logs.glob(f"**/{rank}/stderr.log"))
        for line in path.read_text(encoding="utf-8", errors="replace")
        .replace("\r", "\n")
        .splitlines()
        if line.strip() and not NOISE.match(line)
    ]
    return lines[-1].strip() if lines else ""


def attach(path: str | os.PathLike) -> Job:
    """A run that was started before, perhaps by a kernel that is gone."""
    return Job(RunFolder.of(path).path)

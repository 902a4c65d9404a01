"""The same run in a child process: it goes on when the tab is closed or the kernel dies. Files are the only channel."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lorakit.errors import LorakitError
from lorakit.machine import child_environment
from lorakit.record import Folder, write_json
from lorakit.run import Run

ENDED = ("interrupted", "stopped", "failed", "done")


class Job:
    """A run that trains elsewhere, known by its folder alone."""

    def __init__(self, path: str | os.PathLike, child: subprocess.Popen | None = None):
        self.folder, self._child = Folder(path), child

    @property
    def status(self) -> str:
        """queued, running, interrupted, stopped, failed or done."""
        status, code = self.folder.record["status"], self._child.poll() if self._child else None
        if self._child is None:
            return status
        if code is None:
            return "running" if status in ENDED else status
        if code > 0:
            return "failed"  # also when the folder keeps an older run that this one was refused
        return "interrupted" if status == "queued" or code < 0 else status

    @property
    def running(self) -> bool:
        if self._child is not None and self._child.poll() is None:
            return True
        return self.folder.busy

    def log(self, lines: int = 12) -> str:
        """The last words of the child."""
        path = self.folder / "log.txt"
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n") if path.exists() else ""
        return "\n".join([x for x in text.splitlines() if x.strip()][-lines:])

    def watch(self, every: float = 1.0) -> Job:
        """Draws the curve until the run ends. Interrupting the cell stops the run with a checkpoint."""
        from lorakit.widgets.live import Panel

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
        if self.status in ("failed", "interrupted"):
            raise LorakitError(f"{self.folder.path}: {self.status}. The last words of its log:\n{self.log()}")
        return self

    def stop(self, seconds: float = 60) -> Job:
        """Asks the run to end with a checkpoint; starting it again goes on from there."""
        end, asked = time.monotonic() + seconds, False
        while self.running and time.monotonic() < end:
            record = self.folder.record
            # Before a run has noted `running`, the record may hold the process of an earlier one.
            pid = self._child.pid if self._child else record["pid"] if record["status"] == "running" else None
            with contextlib.suppress(ProcessLookupError):
                if pid and not asked:
                    os.kill(pid, signal.SIGTERM)
                    asked = True
            time.sleep(0.1)
        return self

    def result(self) -> dict[str, Any]:
        """Scores of a finished run. Raises `LorakitError` when it is not done."""
        if self.status != "done":
            raise LorakitError(f"{self.folder.path}: is {self.status}, not done\n{self.log()}")
        return self.folder.scores


def launch(run: Run) -> Job:
    """Starts the run in a process group of its own. A run that is already going is attached to instead."""
    folder = Folder(run.folder)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LorakitError(f"{folder.path}: cannot be written ({error.strerror}); name another output_dir") from None
    if folder.busy:
        differing = run.differences(Run(**folder.record.get("settings", run.model_dump())))
        if differing:
            raise LorakitError(f"{folder.path}: a run with other settings is going there ({', '.join(differing)}); "
                               "give this one another name, or stop that one")
        return Job(folder.path)
    write_json(folder / "asked.json", run.given())
    with open(folder / "log.txt", "ab") as log:
        child = subprocess.Popen([sys.executable, "-m", "lorakit.cli", "train", str(folder / "asked.json")],
                                 stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=child_environment(),
                                 start_new_session=True)
    while child.poll() is None and not folder.busy:
        time.sleep(0.05)
    return Job(folder.path, child)


def together(run: Run, count: int) -> bool:
    """Runs `count` processes through torchrun's own launcher and waits. One that dies ends all of them.

    Returns False when several processes did not get to work and one shall try, as `processes: auto` allows; raises
    `LorakitError` with the last words of the one that died first.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    folder = Folder(run.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    logs = Path(tempfile.mkdtemp(prefix="processes-", dir=folder.path))
    write_json(folder / "asked.json", run.given())
    os.environ.update(child_environment() | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")})
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=folder.path.name, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), tee=Std.ALL, local_ranks_filter={0}),
        log_line_prefix_template=" ")
    before = len(folder.history()[0])
    try:
        elastic_launch(config, sys.executable)("-m", "lorakit.cli", "train", str(folder / "asked.json"))
    except SignalException:
        return True  # asked to stop: the processes have said so in the record
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        words = _last_words(logs, rank)
        how = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        if run.processes == "auto" and len(folder.history()[0]) == before and "lorakit:" not in words:
            print(f"{count} processes did not get to work ({words}): going on with one", file=sys.stderr)
            return False
        if failure.exitcode == 1 and words.startswith("lorakit: "):
            raise LorakitError(words.removeprefix("lorakit: ")) from None
        raise LorakitError(f"process {rank} of {count} ended with {how}, and the others with it. Its last words: "
                           f"{words}. Start again: the run goes on from its checkpoint") from None
    finally:
        shutil.rmtree(logs, ignore_errors=True)
    return True


def _last_words(logs: Path, rank: int) -> str:
    """The last line that a process wrote to its standard error."""
    lines = [line for path in sorted(logs.glob(f"**/{rank}/stderr.log"))
             for line in path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
             if line.strip()]
    return lines[-1].strip() if lines else "none"


def attach(path: str | os.PathLike) -> Job:
    """A run that was started before, perhaps by a kernel that is gone."""
    return Job(Folder.of(path).path)

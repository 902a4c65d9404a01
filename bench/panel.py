"""What watching costs a training: one run of the embedded model, in turns watched and left alone.

    python bench/panel.py            # 24 turns of 20 s: alone, panel, alone, the studio's step Train

The watcher is a Jupyter kernel without a page: what it computes and sends is counted, what a browser draws is not.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from jupyter_client.manager import start_new_kernel

import lorakit

ROOT = Path(__file__).parents[1]
SETUP = """
import time, lorakit
from lorakit.notebook.live import Panel
from lorakit.notebook.studio.app import Studio

job = lorakit.attach({folder!r})
studio = Studio(lorakit.Run(data={data!r}, output_dir={home!r}))

def alone(seconds):
    studio.vue_go(1)
    time.sleep(seconds)

def panel(seconds):
    drawn, end = Panel(job.folder), time.monotonic() + seconds
    while job.running and time.monotonic() < end:  # as Job.watch
        drawn.draw(job.status)
        time.sleep(1.0)

def page(seconds):
    studio.vue_go(5)  # Train
    time.sleep(seconds)
"""


def cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system


def turn(
    client, kernel: psutil.Process, training: psutil.Process, folder, how: str, seconds: float
) -> dict:
    """CPU seconds of both processes and updates done in one turn."""

    def now() -> tuple[float, float, float, int]:
        return time.monotonic(), cpu(kernel), cpu(training), folder.history()[0][-1]["update"]

    before = now()
    client.execute_interactive(
        f"{how}({seconds})", timeout=10 * seconds, output_hook=lambda _: None
    )
    wall, watcher, trained, updates = (b - a for a, b in zip(before, now(), strict=True))
    return {"how": how, "watcher": watcher / wall, "cpu": trained / updates, "wall": wall / updates}


def measured(turns: int, seconds: float, updates: int = 100_000_000) -> list[dict]:
    data = str(ROOT / "data/triage.jsonl")
    with tempfile.TemporaryDirectory() as home:
        run = lorakit.Run(
            name="watched",
            model="tiny",
            data=data,
            output_dir=home,
            max_updates=updates,
            quantization="none",
            validate_every=0,
            checkpoint_every=updates,
        )
        job = lorakit.launch(run)
        manager, client = start_new_kernel(cwd=str(ROOT))
        try:
            while not job.folder.history()[0]:
                time.sleep(0.5)
            client.execute_interactive(
                SETUP.format(folder=str(run.folder), data=data, home=home), timeout=300
            )
            kernel = psutil.Process(manager.provisioner.pid)
            training = psutil.Process(job.folder.record["pid"])
            order = ["alone", "panel", "alone", "page"]
            return [
                turn(client, kernel, training, job.folder, order[i % 4], seconds)
                for i in range(-4, turns)
            ][4:]
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            job.stop()


def main(turns: int = 24, seconds: int = 20) -> None:
    found = measured(turns, seconds)
    print(f"{'':10}{'watcher, CPU':>14}{'training, CPU ms/update':>26}{'wall ms/update':>18}")
    for how in ("alone", "panel", "page"):
        rows = [row for row in found if row["how"] == how]
        watcher, used, wall = (
            statistics.median(row[name] for row in rows) for name in ("watcher", "cpu", "wall")
        )
        print(f"{how:10}{100 * watcher:>12.2f} %{1000 * used:>26.2f}{1000 * wall:>18.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

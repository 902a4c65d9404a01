"""What more rows cost: speed of training, memory of preparing them, and the time until the first update.

    python bench/scale.py                        1,000, 10,000 and 100,000 rows of 37 words, the embedded model
    python bench/scale.py --rows 1000 100000

Each measurement is a process of its own. CPU seconds are those of the process and its children. There are no test rows:
what the model says before training would be counted otherwise. Writes scale.json into outputs/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SETTINGS = {
    "validation_fraction": 0.0,
    "test_fraction": 0.0,
    "validate_every": 0,
    "precision": "fp32",
    "max_updates": 40,
    "learning_rate": 1e-3,
}
WARM = 5  # updates that are not counted
FIRST = 10.0  # seconds until the first update that are thought enough


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options.add_argument("--repeats", type=int, default=3, help="of the speed; the best counts")
    options.add_argument("--out", type=Path, default=Path("outputs/bench"))
    options.add_argument(
        "--speed", nargs=2, help=argparse.SUPPRESS
    )  # FILE FOLDER: one measurement, in this process
    given = options.parse_args()
    if given.speed:
        print(json.dumps(speed(*given.speed)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in given.rows:
            found[count] = measured(count, Path(folder) / str(count), given.repeats)
            print(
                f"{count:>9,} rows: "
                + ", ".join(f"{what} {figure:,.4g}" for what, figure in found[count].items()),
                flush=True,
            )
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "scale.json").write_text(json.dumps(found, indent=1))
    speeds = [line["tokens/CPU s"] for line in found.values()]
    late = max(line["cached: first update after s"] for line in found.values())
    print(
        f"speeds within {max(speeds) / min(speeds) - 1:.1%}; from the cache the first update after {late:.1f} s at "
        f"most, {'within' if late <= FIRST else 'beyond'} {FIRST:.0f} s"
    )


def measured(count: int, folder: Path, repeats: int) -> dict[str, float]:
    folder.mkdir()
    write(folder / "rows.jsonl", count)
    found = {}
    for when in ("new", "cached"):
        (folder / f"{when}.json").write_text(
            json.dumps(
                SETTINGS
                | {"name": when, "data": str(folder / "rows.jsonl"), "output_dir": str(folder)}
            )
        )
        found |= {f"{when}: {what}": figure for what, figure in first_update(folder, when).items()}
    lines = [
        json.loads(
            subprocess.run(
                [sys.executable, __file__, "--speed", folder / "rows.jsonl", folder],
                env=environment(folder),
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout.splitlines()[-1]
        )
        for _ in range(repeats)
    ]
    best = max(lines, key=lambda line: line["tokens/CPU s"])
    return found | best | {"ms a row and epoch": min(line["ms a row and epoch"] for line in lines)}


def write(path: Path, count: int) -> None:
    """Instructions of 25 words and answers of 12, no two alike."""
    rng = random.Random(0)
    words = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)
    ]
    with path.open("w") as file:
        for _ in range(count):
            asked, said = (" ".join(rng.choices(words, k=k)) for k in (25, 12))
            file.write(json.dumps({"instruction": asked, "output": said}) + "\n")


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "LORAKIT_CACHE": str(folder / "cache"),
    }


def first_update(folder: Path, name: str) -> dict[str, float]:
    """`lorakit train`, from its start until its history has a line; then it is stopped."""
    start, history, peak, spent = time.perf_counter(), folder / name / "history.jsonl", 0, 0.0
    with (folder / f"{name}.txt").open("w") as words:
        run = psutil.Popen(
            [sys.executable, "-m", "lorakit.cli", "train", folder / f"{name}.json"],
            env=environment(folder),
            stdout=words,
            stderr=words,
        )
        while not (history.exists() and history.stat().st_size):
            if run.poll() is not None:
                raise SystemExit((folder / f"{name}.txt").read_text())
            family = [run, *run.children(recursive=True)]
            for process in family:
                try:
                    peak = max(peak, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        times = run.cpu_times()
        spent = times.user + times.system + times.children_user + times.children_system
        run.terminate()
        run.wait()
    return {"first update after s": seconds, "CPU s": spent, "peak MB of a process": peak / 1e6}


def speed(file: str, folder: str) -> dict[str, float]:
    """Rows from the cache: input tokens per CPU second of training, and the cost of putting an epoch together."""
    from lorakit import Run, prepare
    from lorakit.common import registry
    from lorakit.machine import hardware
    from lorakit.planning import choose
    from lorakit.training.loop import State, train
    from lorakit.training.session import batches_of

    run, _ = choose.resolve(Run(**SETTINGS, data=file, output_dir=folder), hardware.facts())
    rows = prepare(run).rows["train"]
    engine = registry.load("engines", run.engine).load(run)
    batches = batches_of(rows, run, engine.packing)
    clock: list[float] = []
    train(
        engine,
        batches,
        State(),
        lambda update: 1e-3,
        lambda state, line: clock.append(time.process_time()),
    )
    tokens = sum(batches.tokens(update) for update in range(WARM, len(clock)))
    many = batches_of(rows, run.with_(max_updates=None, epochs=1), engine.packing)
    chosen, start = range(0, len(many), max(1, len(many) // 100)), time.process_time()
    for update in chosen:
        many[update]
    each = (time.process_time() - start) / len(chosen) / run.global_batch_size
    return {
        "tokens/CPU s": tokens / (clock[-1] - clock[WARM - 1]),
        "ms a row and epoch": 1e3 * each,
        "MB held": hardware.peak_resident() / 1e6,
    }


if __name__ == "__main__":
    main()

"""One curve, however many processes: step losses and speed of 30 updates alone, on two processes, with the base split
over them (FSDP2), its weights in fp32 and in NF4, and of runs that are cut on one number of processes and resumed on
another. `make bench` writes outputs/bench/processes.json and prints the table."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import lorakit

# configuration -> (processes one after the other: cut after some ten updates but for the last, settings, compared with)
STARTED = {
    "1 process": ([1], {}, "1 process"),
    "2 processes": ([2], {}, "1 process"),
    "2, sharded": ([2], {"shard": True}, "1 process"),
    "1, NF4": ([1], {"quantization": "nf4"}, "1, NF4"),
    "2, NF4 sharded": ([2], {"quantization": "nf4", "shard": True}, "1, NF4"),
    "2, resumed on 1": ([2, 1], {}, "1 process"),
    "1, resumed on 2": ([1, 2], {}, "1 process"),
}


def curve(run: lorakit.Run, counts: list[int]) -> list[dict]:
    """The lines of its updates."""
    for number, count in enumerate(counts, 1):
        job = lorakit.launch(run.with_(processes=count))
        while job.running:
            if number < len(counts) and len(job.folder.history()[0]) >= 10:
                job.stop()
            time.sleep(0.01)
        expected = "stopped" if number < len(counts) else "done"
        if job.status != expected:
            raise SystemExit(f"{run.name}: is {job.status}, not {expected}\n{job.log()}")
    return job.folder.history()[0]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="tiny")
    options.add_argument("--data", default="data/triage.jsonl")
    options.add_argument("--out", type=Path, default=Path("outputs/bench/processes.json"))
    given = options.parse_args()
    curves: dict[str, list[dict]] = {}
    print(
        f"{'started as':<18} {'update 1':>10} {'update 30':>10} {'largest difference':>20} {'target tokens/s':>16}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, (counts, settings, other) in STARTED.items():
            lines = curves[name] = curve(
                lorakit.Run(
                    **{
                        "name": name.replace(",", ""),
                        "model": given.model,
                        "data": given.data,
                        "output_dir": folder,
                        "max_length": 256,
                        "rank": 8,
                        "alpha": 16,
                        "learning_rate": 1e-3,
                        "global_batch_size": 8,
                        "quantization": "none",
                        "precision": "fp32",
                        "max_updates": 30,
                        "validation_fraction": 0.0,
                        "test_fraction": 0.0,
                        **settings,
                    }
                ),
                counts,
            )
            off = max(abs(a["loss"] - b["loss"]) for a, b in zip(lines, curves[other], strict=True))
            speed = sum(x["target_tokens"] for x in lines) / sum(x["seconds"] for x in lines)
            first, last = lines[0]["loss"], lines[-1]["loss"]
            print(f"{name:<18} {first:10.6f} {last:10.6f} {off:20.1e} {speed:16,.0f}", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(
        json.dumps({n: [x["loss"] for x in lines] for n, lines in curves.items()}, indent=1)
    )


if __name__ == "__main__":
    main()

"""lorakit beside TRL, a plain loop and, on a card, Unsloth: real tokens a second at equal loss, and memory.

    python bench/speed.py                                one CPU thread, a Llama of 42 M parameters, about 12 minutes
    python bench/speed.py --rows gsm8k                   rows of LORAKIT_TEST_DATA instead of learnable ones
    python bench/speed.py --shape 8b --size 32           on a card

Each run is a process of its own (`peers.py`), variants in turn and again; medians, and the least and the most of them.
Writes bench.json and bench.png into outputs/bench. A variant that cannot run here is named under `failed`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
# Updates of one run, two of them to warm up; what is measured once comes last.
CPU = {"lorakit": 12, "lorakit_compiled": 12, "plain": 5, "trl_default": 4, "trl_best": 6}
ONCE = {"trl_packed": 4, "lorakit_nf4": 6, "trl_nf4": 4}
CARD = dict.fromkeys(
    [
        "lorakit",
        "lorakit_compiled",
        "lorakit_fp8",
        "unsloth_default",
        "unsloth_tuned",
        "trl_default",
        "trl_best",
        "trl_liger",
        "plain",
    ],
    12,
)
AGAINST = {
    "lorakit_nf4": "trl_nf4"
}  # others against `reference`, packs against `reference` on the rows of theirs
RATES = {"synthetic": 1e-3, "instruction_small": 3e-3, "gsm8k": 3e-3}
WHOLE, SHOWN = 30, 5  # updates of lorakit's loss check, and at least of the others'


def main() -> None:
    given = options().parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given)
        found = bench.all()
    found["minutes"] = round((time.monotonic() - began) / 60, 1)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "bench.json").write_text(json.dumps(found, indent=1))
    draw(found, given.out / "bench.png")
    print(table(found))


def options() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--shape", default="40m")
    found.add_argument(
        "--rows", default="synthetic", choices=["synthetic", "instruction_small", "gsm8k"]
    )
    found.add_argument("--lengths", default="alpaca", choices=["alpaca", "full"])
    found.add_argument("--size", type=int, default=8, help="rows per update")
    found.add_argument(
        "--rate", type=float, help="learning rate; default: one at which these rows are learnt"
    )
    found.add_argument("--repeats", type=int, default=3)
    found.add_argument(
        "--updates", type=int, help="of every run, instead of each variant's own number"
    )
    found.add_argument("--variants", nargs="+", help="default: all that belong to this machine")
    found.add_argument("--no-check", action="store_true", help="leave the loss check out")
    found.add_argument("--out", type=Path, default=Path("outputs/bench"))
    return found


class Bench:
    def __init__(self, folder: Path, given: argparse.Namespace):
        self.folder, self.given, self.failed = folder, given, {}
        self.checked = 0 if given.no_check else WHOLE
        self.run(
            "lay",
            "--shape",
            given.shape,
            "--rows",
            given.rows,
            "--lengths",
            given.lengths,
            "--size",
            given.size,
            "--updates",
            max(WHOLE, given.updates or 0),
            "--rate",
            given.rate or RATES[given.rows],
        )
        if self.failed:
            raise SystemExit(f"nothing to train: {self.failed['lay']}")
        self.work = json.loads((folder / "work.json").read_text())
        mine = CARD if self.work["device"] == "cuda" else CPU
        often = mine if given.variants is None else [v for v in given.variants if v not in ONCE]
        self.often = {v: given.updates or mine.get(v, 6) for v in often}
        once = (
            ({} if mine is CARD else ONCE)
            if given.variants is None
            else [v for v in given.variants if v in ONCE]
        )
        self.once = {v: given.updates or ONCE[v] for v in once}

    def all(self) -> dict:
        runs: dict[str, list[dict]] = {}
        reference = self.run("reference", "--updates", WHOLE) if self.checked else None
        for repeat in range(self.given.repeats):
            for variant, updates in {
                "matmul": 0,
                **self.often,
                **(self.once if repeat == 0 else {}),
            }.items():
                first = repeat == 0 and self.checked
                updates = max(updates, (WHOLE if variant == "lorakit" else SHOWN) if first else 0)
                more = ["--profile"] if variant == "lorakit" and repeat == 0 else []
                if variant not in self.failed and (
                    line := self.run(variant, "--updates", updates, *more)
                ):
                    runs.setdefault(variant, []).append(line)
        check = self.check(runs, reference) if reference else {}
        return summary(runs, check, self.work, self.given, self.failed)

    def run(self, variant: str, *options: object) -> dict | None:
        """What it printed; None, and why under `failed`."""
        # One thread: two on a shared machine swing by ten times.
        threads = (
            {}
            if subprocess.run(["which", "nvidia-smi"], capture_output=True).returncode == 0
            else {"OMP_NUM_THREADS": "1"}
        )
        done = subprocess.run(
            [sys.executable, HERE / "peers.py", self.folder, variant, *map(str, options)],
            env={**os.environ, **threads},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            self.failed[variant] = (done.stderr.strip().splitlines() or ["no words"])[-1]
            print(f"{variant}: {self.failed[variant]}", flush=True)
            return None
        if variant == "lay":
            return None
        line = json.loads(done.stdout.strip().splitlines()[-1])
        if "losses" in line:
            print(
                f"{variant:<16} {line['tokens_per_second']:9.0f} tokens/s, {line['peak_rss'] / 1e9:.2f} GB, "
                f"{len(line['losses'])} updates",
                flush=True,
            )
        return line

    def check(self, runs: dict[str, list[dict]], reference: dict) -> dict:
        """Step losses and gradients of each variant beside those of fp32 on the same rows."""
        known, against = {"reference": reference}, dict(AGAINST)
        for groups in sorted(self.folder.glob("*.groups.json")):
            variant = groups.name.removesuffix(".groups.json")
            against[variant] = f"reference on {variant}'s rows"
            known[against[variant]] = self.run(
                "reference", "--groups", groups, "--name", against[variant]
            )
        known |= {v: runs[v][0] for v in AGAINST.values() if v in runs}
        losses = known["reference"]["losses"]
        found = {
            "reference_falls_by": losses[0] - losses[-1],
            "step_losses": {},
            "gradients_after_update_5": {},
        }
        for variant, lines in runs.items():
            other = against.get(variant, "reference")
            if variant in ("matmul", *known) or known.get(other) is None:
                continue
            pairs = list(zip(lines[0]["losses"], known[other]["losses"]))
            found["step_losses"][variant] = {
                "against": other,
                "updates": len(pairs),
                "largest_difference": max(abs(a - b) / b for a, b in pairs),
            }
            files = [self.folder / f"{name}.safetensors" for name in (variant, other)]
            if other == "reference" and all(f.exists() for f in files):
                found["gradients_after_update_5"][variant] = {"against": other, **cosines(*files)}
        return found


def cosines(one: Path, other: Path) -> dict:
    """The least similar tensor."""
    import numpy as np
    from safetensors.numpy import load_file

    a, b = load_file(one), load_file(other)
    if a.keys() != b.keys():
        return {"lowest_cosine": None, "tensor": "the names differ"}
    found = {
        n: float((a[n] * b[n]).sum() / max(np.linalg.norm(a[n]) * np.linalg.norm(b[n]), 1e-30))
        for n in a
    }
    lowest = min(found, key=found.__getitem__)
    return {"lowest_cosine": found[lowest], "tensor": lowest}


def summary(runs: dict, check: dict, work: dict, given: argparse.Namespace, failed: dict) -> dict:
    speeds = {
        v: [line["tokens_per_second"] for line in lines]
        for v, lines in runs.items()
        if v != "matmul"
    }
    median = {v: statistics.median(s) for v, s in speeds.items()}
    memory = {
        v: statistics.median(line["peak_card"] or line["peak_rss"] for line in runs[v])
        for v in speeds
    }
    weights = sum(out * width * count for out, width, count in work["matrices"])
    rate = statistics.median(line["flop_per_second"] for line in runs["matmul"])
    mine = {v: "lorakit_nf4" if v.endswith("_nf4") else "lorakit" for v in speeds}
    peers = [v for v in speeds if v != mine[v] and mine[v] in speeds]
    profile = next((line["profile"] for line in runs.get("lorakit", []) if "profile" in line), {})
    return {
        "shape": given.shape,
        "rows": given.rows,
        "lengths": given.lengths,
        "rows_per_update": given.size,
        "rate": work["rate"],
        "device": work["device"],
        "machine": work["machine"],
        "python": platform.python_version(),
        "versions": work["versions"],
        "unit": "real tokens per second of the card"
        if work["device"] == "cuda"
        else "real tokens per CPU second",
        "ratios": {v: median[mine[v]] / median[v] for v in peers},
        "memory_ratios": {v: memory[mine[v]] / memory[v] for v in peers},
        "tokens_per_second": {
            v: {"median": median[v], "least": min(s), "most": max(s), "runs": len(s)}
            for v, s in speeds.items()
        },
        "peak_bytes": memory,
        "loss_check": check,
        "matmul_flop_per_second": rate,
        "weights": weights,
        "share_of_matmul_rate": {v: 4 * weights * m / rate for v, m in median.items()},
        "profile_ms": profile,
        "failed": failed,
        "runs": {v: lines for v, lines in runs.items() if v != "matmul"},
    }


def table(found: dict) -> str:
    lines = [
        f"{found['machine']}, {found['shape']}, {found['rows']}, {found['unit']}",
        f"{'':<16} {'median':>9} {'least':>8} {'most':>8} {'GB':>6} {'share':>6} {'lorakit is':>11}",
    ]
    for v, s in found["tokens_per_second"].items():
        ratio = f"{found['ratios'][v]:10.1f}×" if v in found["ratios"] else ""
        lines.append(
            f"{v:<16} {s['median']:9.0f} {s['least']:8.0f} {s['most']:8.0f} "
            f"{found['peak_bytes'][v] / 1e9:6.2f} {found['share_of_matmul_rate'][v]:6.0%} {ratio}"
        )
    if check := found["loss_check"]:
        lines.append(
            f"the reference falls by {check['reference_falls_by']:.2f} nats in {WHOLE} updates; beside it:"
        )
        for v, seen in check["step_losses"].items():
            cosine = check["gradients_after_update_5"].get(v, {}).get("lowest_cosine")
            lines.append(
                f"{v:<16} step losses of {seen['updates']} updates within {seen['largest_difference']:.2%} of "
                f"{seen['against']}" + (f", gradients' cosine ≥ {cosine:.5f}" if cosine else "")
            )
    return "\n".join(lines + [f"{v}: {why}" for v, why in found["failed"].items()])


def draw(found: dict, path: Path) -> None:
    """Bars of speed with their spread, and of memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    speeds, names = found["tokens_per_second"], list(found["tokens_per_second"])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 0.6 + 0.45 * len(names)), sharey=True, layout="constrained"
    )
    medians = [speeds[v]["median"] for v in names]
    spread = [
        [m - speeds[v]["least"] for m, v in zip(medians, names)],
        [speeds[v]["most"] - m for m, v in zip(medians, names)],
    ]
    colours = ["tab:green" if v.startswith("lorakit") else "tab:gray" for v in names]
    left.barh(names, medians, xerr=spread, color=colours, capsize=3)
    left.bar_label(left.containers[1], [f" {m:,.0f}" for m in medians], padding=4)
    left.set(xlabel=found["unit"], xlim=(0, 1.2 * max(speeds[v]["most"] for v in names)))
    left.invert_yaxis()
    right.barh(names, [found["peak_bytes"][v] / 1e9 for v in names], color=colours)
    right.set(xlabel="peak memory, GB")
    figure.suptitle(f"LoRA on a Llama ({found['shape']}), {found['rows']} rows, {found['machine']}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()

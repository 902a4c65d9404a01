"""What this machine is, what would be chosen on it and why, and what is wrong with the cure."""

from __future__ import annotations

from typing import Any

from lorakit import machine, plan
from lorakit.run import Run


def examine(folder: str = ".", run: Run | None = None) -> dict[str, Any]:
    """facts, choices (for `run`, else for the embedded model), problems with their cures, and the same as lines."""
    facts = machine.facts(folder)
    _, choices = plan.resolve(run or Run(data="-"), facts)
    wrong = problems(facts)
    lines = [f"{facts.place}: {facts.system}, Python {facts.python}, {facts.cores} cores, {facts.memory / 1e9:.1f} GB "
             f"of memory, {facts.disk_free / 1e9:.1f} GB of disk free"]
    lines += [f"card: {c.name}, {c.memory / 1e9:.1f} GB, sm_{c.capability[0]}{c.capability[1]}, "
              + ("bf16 in hardware" if c.bf16 else "no bf16 hardware") for c in facts.cards]
    lines += [", ".join(f"{k} {v}" for k, v in facts.packages.items())]
    lines += [f"{name} = {value}: {reason}" for name, (value, reason) in choices.items()]
    lines += [f"WRONG: {p['what']}. Cure: {p['cure']}" for p in wrong] or ["nothing is wrong"]
    return {"facts": facts.as_dict(), "choices": choices, "problems": wrong, "lines": lines}


def problems(facts: machine.Facts) -> list[dict[str, str]]:
    """What would break or spoil a run here."""
    found = []

    def wrong(what: str, cure: str) -> None:
        found.append({"what": what, "cure": cure})

    for name in ("torch", "transformers", "peft", "datasets"):
        if name not in facts.packages:
            wrong(f"{name} is not installed", "pip install lorakit, or make env in a clone")
    if "bitsandbytes" not in facts.packages:
        wrong("bitsandbytes is not installed, so QLoRA is not possible", "pip install bitsandbytes")
    if facts.disk_free < 2e9:
        wrong(f"only {facts.disk_free / 1e9:.1f} GB of disk are free", "free some, or name an output_dir elsewhere")
    if facts.memory < 4e9:
        wrong(f"only {facts.memory / 1e9:.1f} GB of memory", "take a machine with 8 GB or more")
    if tuple(map(int, facts.python.split(".")[:2])) not in ((3, 11), (3, 12), (3, 13)):
        wrong(f"Python {facts.python} was not tested", "use 3.11, 3.12 or 3.13")
    return found

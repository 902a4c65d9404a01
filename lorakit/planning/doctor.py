"""What this machine is, what would be chosen on it and why, and what is wrong with the cure."""

from __future__ import annotations

import re
from typing import Any

from lorakit.common import hub
from lorakit.common.errors import LorakitError
from lorakit.machine import hardware
from lorakit.machine.packages import declared, ignored_torchao, quoted, unmet
from lorakit.planning import choose
from lorakit.planning.setup import setup
from lorakit.run import Run

# What lorakit was run with, from the first to the last; others may work.
TESTED = {
    "torch": ("2.10", "2.13"),
    "transformers": ("5.0", "5.24"),
    "peft": ("0.18", "0.21"),
    "bitsandbytes": ("0.50", "0.50"),
    "datasets": ("4.0", "5.2"),
}
# Where the image comes with its torch, the card is what can be changed.
HOSTED_CARD = {
    "kaggle": "choose Settings → Accelerator → GPU T4 x2",
    "colab": "choose Runtime → Change runtime type → T4 GPU",
}


def examine(folder: str = ".", run: Run | None = None) -> dict[str, Any]:
    """facts, choices (for `run`, else for the embedded model), problems and notes with cures; the same as lines."""
    facts = hardware.facts(folder)
    wrong, notes = problems(facts), remarks(facts, hub.reachable())
    wrong += [
        {
            "what": f"{u.name} {u.installed} is not supported (lorakit needs {u.requirement})",
            "cure": f"pip install {quoted(u.requirement)}",
        }
        for u in unmet(declared())
        if u.installed
    ]
    try:
        choices = setup(run, facts).choices if run else choose.resolve(Run(data="-"), facts)[1]
    except LorakitError as error:
        choices = {}
        wrong.append({"what": str(error), "cure": "see above, or name the setting yourself"})
    lines = [
        f"{facts.place}: {facts.system}, Python {facts.python}, {facts.cores} cores, {facts.memory / 1e9:.1f} GB "
        f"of memory, {facts.disk_free / 1e9:.1f} GB of disk free"
    ]
    lines += [
        f"card: {c.name}, {c.memory / 1e9:.1f} GB, {c.arch}, "
        + ("bf16 in hardware" if c.bf16 else "no bf16 hardware")
        for c in facts.cards
    ]
    lines += [", ".join(f"{k} {v}" for k, v in facts.packages.items())]
    lines += [f"{name}: {value} ({reason})" for name, (value, reason) in choices.items()]
    lines += [f"note: {n['what']}. {n['cure']}" for n in notes]
    lines += [f"WRONG: {p['what']}. Cure: {p['cure']}" for p in wrong] or ["nothing is wrong"]
    return {
        "facts": facts.as_dict(),
        "choices": choices,
        "problems": wrong,
        "notes": notes,
        "lines": lines,
    }


def remarks(facts: hardware.Facts, online: bool | None) -> list[dict[str, str]]:
    """What works, and is good to know."""
    found = [
        {
            "what": f"{c.name} has no bf16 hardware; torch emulates it, slowly, and says it is supported",
            "cure": "precision: auto takes fp16 there",
        }
        for c in dict.fromkeys(facts.cards)
        if not c.bf16
    ]
    for name, (low, high) in TESTED.items():
        here = version(facts.packages.get(name, low))
        if not version(low) <= here <= version(high):
            found.append(
                {
                    "what": f"{name} {facts.packages[name]} was not tested (tested: {low} to {high})",
                    "cure": "Keep it: the packages of this image fit each other"
                    if facts.hosted
                    else f"If something breaks: pip install '{name}=={high}.*'",
                }
            )
    if ignored_torchao(facts.packages):
        found.append(
            {
                "what": f"torchao {facts.packages['torchao']} is older than PEFT supports; lorakit "
                "treats it as not installed",
                "cure": "PEFT without lorakit refuses to load an adapter here until: "
                "pip uninstall -y torchao",
            }
        )
    if online is False:
        where = {
            "kaggle": "Turn the internet on in the notebook's settings, or attach",
            "colab": "Look at the connection, or upload",
        }.get(facts.place, "Look at the connection, or copy")
        found.append(
            {"what": "the hub cannot be reached", "cure": f"{where} model and data as folders"}
        )
    if facts.place == "colab" and not facts.drive:
        found.append(
            {
                "what": "Colab deletes its disk with the session",
                "cure": "from google.colab import drive; drive.mount('/content/drive')",
            }
        )
    if facts.apple:
        words = f"macOS lets the GPU hold {facts.device_memory / 1e9:.1f} of {facts.memory / 1e9:.1f} GB"
        if facts.more:
            found.append({"what": words, "cure": f"For more, until the next start: {facts.more}"})
        found.append(
            {
                "what": "a Mac falls asleep during long runs",
                "cure": "Start them as: caffeinate -i lorakit train RUN.yaml, or caffeinate -i jupyter lab",
            }
        )
    return found


def version(text: str) -> tuple[int, int]:
    """(major, minor) of `5.23.1+cu128`."""
    numbers = re.findall(r"\d+", text)
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else (0, 0)


def problems(facts: hardware.Facts) -> list[dict[str, str]]:
    """What would break or spoil a run here."""
    found = []

    def wrong(what: str, cure: str) -> None:
        found.append({"what": what, "cure": cure})

    for name in ("torch", "transformers", "peft", "datasets"):
        if name not in facts.packages:
            wrong(f"{name} is not installed", "pip install lorakit, or make env in a clone")
    if "bitsandbytes" not in facts.packages:
        wrong("bitsandbytes is not installed, so QLoRA is not possible", "pip install bitsandbytes")
    installed = facts.packages.get("torch", "")
    for name, loaded, here in facts.replaced:
        wrong(
            f"this process has imported {name} {loaded}, and {here} is installed now",
            "restart the kernel: a package that is imported cannot be exchanged",
        )
    for card in dict.fromkeys(facts.cards):
        if not card.served(facts.torch_archs):
            wrong(
                f"torch {installed} was not built for {card.name} ({card.arch}; it knows "
                f"{', '.join(facts.torch_archs)})",
                HOSTED_CARD.get(facts.place)
                or "take another card, or a torch built for this one: P100 (sm_60) "
                "needs torch < 2.8 or a build for CUDA 12.6",
            )
    if facts.translated:
        wrong(
            "this Python was built for Intel and runs under Rosetta, where nothing reaches Apple's GPU",
            "install Python for arm64 and make the environment anew; it is there when "
            "python -c 'import platform; print(platform.machine())' says arm64",
        )
    elif facts.system == "Darwin arm64" and installed and not facts.mps:
        wrong(
            f"torch {installed} does not reach Apple's GPU and would compute on the CPU",
            "update macOS to 14 or later",
        )
    if facts.mps_fallback:
        wrong(
            "PYTORCH_ENABLE_MPS_FALLBACK=1: what Apple's GPU lacks would be computed on the CPU, slowly, without a "
            "word",
            "unset it; torch then names the operation that is missing",
        )
    if facts.disk_free < 2e9:
        wrong(
            f"only {facts.disk_free / 1e9:.1f} GB of disk are free",
            "free some, or name an output_dir elsewhere",
        )
    if facts.memory < 4e9:
        wrong(f"only {facts.memory / 1e9:.1f} GB of memory", "take a machine with 8 GB or more")
    if tuple(map(int, facts.python.split(".")[:2])) not in ((3, 11), (3, 12), (3, 13)):
        wrong(f"Python {facts.python} was not tested", "use 3.11, 3.12 or 3.13")
    return found

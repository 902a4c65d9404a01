"""What the record of an export says, for people and for tables."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.common.files import require_keys
from lorakit.data.quality import some

RECORD = "export.json"
NEEDED = (
    "target",
    "type",
    "run",
    "bytes",
    "agreement",
    "perplexity",
    "tokens_per_second",
    "notes",
)


def read(folder: str | os.PathLike) -> dict[str, Any]:
    """`export.json` of an exported folder. Raises `LorakitError` where there is none."""
    try:
        content = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
        return require_keys(content, *NEEDED)
    except (OSError, ValueError) as error:
        raise LorakitError(
            f"holds no export ({error})",
            where=folder,
            cure="make one: lorakit export RUN_DIR --to …",
        ) from None


def words(folder: str | os.PathLike) -> list[str]:
    """What the proof of an export showed, a line each."""
    found = read(folder)
    agreement, loss, speed = found["agreement"], found["perplexity"], found["tokens_per_second"]
    head = f"{found['target']} {found['type']}: {found['bytes'] / 1e6:.1f} MB, loaded by a fresh process"
    few = (
        f"; only {some(agreement['distinct'], 'different answer')}, which proves little"
        if agreement["proves_little"]
        else ""
    )
    if "probabilities" in found:
        off = found["probabilities"]
        return [
            head,
            f"{agreement['identical']} of {agreement['prompts']} rows have the tuned model's class{few}; the "
            f"probability of a class differs by at most {off['largest_difference']:.1e} ({off['bound']:g} is the "
            "bound)",
            *found["notes"],
        ]
    return [
        head,
        f"perplexity on the run's rows {loss['before']:.4f} before, {loss['after']:.4f} after "
        f"({loss['added_nats']:+.4f} nats a token, at most {loss['bound']:g})",
        *divergence_words(found["divergence"]),
        agreement_words(agreement) + few,
        f"{speed['after']:.0f} tokens/s here",
        *found["notes"],
    ]


def divergence_words(found: dict[str, Any]) -> list[str]:
    """A line each for the run's rows and for other texts."""
    names = {"own_rows": "on the run's rows", "other_texts": "on texts unlike the run's"}
    return [
        f"{name}: KL divergence {found[key]['nats']:.2g} nats a token (at most {found['bound']:g}), the same first "
        f"choice in {found[key]['same_choice']:.1%} of {found[key]['positions']} positions"
        for key, name in names.items()
        if key in found
    ]


def agreement_words(found: dict[str, Any]) -> str:
    """How many greedy answers are the same, and why others are not."""
    line = (
        f"{found['identical']} of {found['prompts']} greedy answers are the tuned model's, token by token "
        f"({found['tokens']:.1%} of the tokens before the first difference)"
    )
    parted = found["prompts"] - found["identical"]
    if parted and found.get("median_margin_where_parted") is not None:
        line += (
            f"; {found['parted_at_near_ties']} of the {parted} others part at a near tie, where the tuned model's two "
            f"best tokens are {found['median_margin_where_parted']:.2f} nats apart (median)"
        )
    return line


def table(*folders: str | os.PathLike) -> list[dict[str, Any]]:
    """A row per export: megabytes, tokens a second, perplexity, divergence, agreement."""
    out = []
    for found in map(read, folders):
        agreement, divergence = found["agreement"], found.get("divergence", {})
        out.append(
            {
                "export": f"{found['target']} {found['type']}",
                "megabytes": found["bytes"] / 1e6,
                "tokens_per_second": found["tokens_per_second"]["after"],
                "perplexity": found["perplexity"]["after"],
                "kl_divergence": divergence.get("own_rows", {}).get("nats"),
                "equal_tokens": agreement["tokens"],
                "identical_answers": f"{agreement['identical']} of {agreement['prompts']}",
            }
        )
    return out

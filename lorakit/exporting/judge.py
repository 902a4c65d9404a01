"""Whether an export is the tuned model: loss and KL divergence decide, greedy answers are reported."""

from __future__ import annotations

from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.exporting.measure import (
    DECIDED,
    Compared,
    Said,
    equal_tokens,
    first_difference,
    perplexity,
)
from lorakit.exporting.target import EXACT, FOUR_BITS, SIXTEEN_BITS, Bounds

DISTINCT = 10  # different answers from which their agreement says something


def within_precision(precision: str, bounds: Bounds) -> Bounds:
    """Wider where the tuned model itself could not be asked in fp32."""
    if precision == "fp32":
        return bounds
    return bounds.or_wider(SIXTEEN_BITS if precision in ("bf16", "fp16") else FOUR_BITS)


def judge(tuned: Said, export: Compared, bounds: Bounds, what: str) -> dict[str, Any]:
    """What the proof shows, for the record. Raises `LorakitError` when it shows another model than the tuned one."""
    rows = len(export.nats)
    loss, before = export.loss(), tuned.loss(rows)
    found: dict[str, Any] = {
        "agreement": agreement(tuned, export),
        "perplexity": {
            "before": perplexity(before),
            "after": perplexity(loss),
            "added_nats": loss - before,
            "bound": bounds.added_nats,
        },
        "tokens_per_second": {
            "before": tuned.tokens_per_second,
            "after": export.tokens_per_second,
        },
    }
    if tuned.probabilities:
        found["probabilities"] = _probabilities(tuned, export, bounds, what)
    else:
        found["divergence"] = divergence(export, bounds)
    refuse(found, what)
    return found | export.facts


def divergence(export: Compared, bounds: Bounds) -> dict[str, Any]:
    """KL divergence and equal first choices, on the run's own rows and on texts unlike them."""
    own = np.array(export.own, dtype=bool)
    columns = {
        name: np.array(getattr(export, name), dtype=np.float64)
        for name in ("divergence", "compared", "same", "decided", "decided_same")
    }

    def over(rows: np.ndarray) -> dict[str, float]:
        total = {name: float(values[rows].sum()) for name, values in columns.items()}
        return {
            "positions": int(total["compared"]),
            "nats": total["divergence"] / max(1.0, total["compared"]),
            "same_choice": total["same"] / max(1.0, total["compared"]),
            "same_choice_where_decided": total["decided_same"] / max(1.0, total["decided"]),
        }

    parts = {name: over(rows) for name, rows in (("own_rows", own), ("other_texts", ~own))}
    kept = {name: part for name, part in parts.items() if part["positions"]}
    return kept | {
        "bound": bounds.divergence,
        "bound_same_choice_where_decided": bounds.agreement,
    }


def agreement(tuned: Said, export: Compared) -> dict[str, Any]:
    """How far greedy answers are the same, and how close the tuned model's own choice was where they part."""
    answers = tuned.answers[: len(export.answers)]
    pairs = list(zip(answers, export.answers, strict=True))
    parted = [(i, first_difference(one, two)) for i, (one, two) in enumerate(pairs) if one != two]
    margins = [
        tuned.margins[i][place]
        for i, place in parted
        if i < len(tuned.margins) and place < len(tuned.margins[i])
    ]
    distinct = len({tuple(answer) for answer in answers})
    return {
        "prompts": len(answers),
        "identical": len(answers) - len(parted),
        "tokens": equal_tokens(answers, export.answers),
        "distinct": distinct,
        "proves_little": distinct < (2 if tuned.probabilities else DISTINCT),
        "parted_at_near_ties": sum(margin < DECIDED for margin in margins),
        "median_margin_where_parted": float(np.median(margins)) if margins else None,
    }


def _probabilities(tuned: Said, export: Compared, bounds: Bounds, what: str) -> dict[str, Any]:
    most = 1e-4 if bounds.added_nats <= 1e-3 else bounds.added_nats
    difference = np.abs(np.subtract(export.probabilities, tuned.probabilities))
    return {"largest_difference": float(difference.max()), "bound": most}


def refuse(found: dict[str, Any], what: str) -> None:
    """Raises `LorakitError` for the first figure beyond its bound."""
    problems: list[str] = []
    loss = found["perplexity"]
    if not loss["added_nats"] <= loss["bound"]:
        problems.append(
            f"the loss on the run's rows grows by {loss['added_nats']:.4f} nats a token "
            f"(at most {loss['bound']:g})"
        )
    if "probabilities" in found:
        off = found["probabilities"]
        if not off["largest_difference"] <= off["bound"]:
            problems.append(
                f"the probability of a class differs by {off['largest_difference']:.1e} "
                f"(at most {off['bound']:g})"
            )
    else:
        problems += _divergence_problems(found["divergence"])
    if problems:
        raise LorakitError(
            f"the export is another model than the tuned one: {'; '.join(problems)}. Its files are removed",
            where=what,
            cure=_cure(found),
        )


def _divergence_problems(found: dict[str, Any]) -> list[str]:
    problems: list[str] = []
    names = {"own_rows": "the run's rows", "other_texts": "texts unlike the run's"}
    for key, name in names.items():
        part = found.get(key)
        if part and not part["nats"] <= found["bound"]:
            problems.append(
                f"the KL divergence on {name} is {part['nats']:.4f} nats a token "
                f"(at most {found['bound']:g})"
            )
        elif part and part["same_choice_where_decided"] < found["bound_same_choice_where_decided"]:
            problems.append(
                f"on {name} its first choice is the tuned model's in "
                f"{part['same_choice_where_decided']:.1%} of the positions where that is clear "
                f"(at least {found['bound_same_choice_where_decided']:.0%})"
            )
    return problems


def _cure(found: dict[str, Any]) -> str:
    if found["perplexity"]["bound"] == EXACT.added_nats:
        return "no type has more bits: report this with the settings of the run"
    return "take a type with more bits"

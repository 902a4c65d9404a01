"""Before and after, on rows that training never saw, with intervals."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write, require_keys
from lorakit.machine.packages import require
from lorakit.results import intervals
from lorakit.tasks import batches, objectives
from lorakit.tasks.batches import Batch
from lorakit.tasks.protocol import Objective
from lorakit.tasks.rows import Rows


@dataclass
class Outcome:
    """What a model did on one set of rows: per row its token sums, and its answer where one is asked for."""

    tokens: np.ndarray  # (n, 3): summed loss in nats, targets, targets predicted right
    answers: list[str | None]  # n; of a label task the most probable class
    sources: list[str] | None = None  # n, the row of the file that each is a piece of
    probabilities: np.ndarray | None = None  # (n, C) of a label task
    classes: Sequence[str] = ()  # C
    pairs: np.ndarray | None = (
        None  # (n, 4): rewards of chosen and rejected, chosen's nats and tokens
    )

    @classmethod
    def of_classes(cls, sums: np.ndarray, classes: Sequence[str], sources: list[str]) -> Outcome:
        """From what an engine predicts for rows of a label task, (n, 3 + C)."""
        found = [classes[i] for i in sums[:, 3:].argmax(axis=1)]
        return cls(sums[:, :3], found, sources, sums[:, 3:], list(classes))

    def some(self, rows: Sequence[int]) -> Outcome:
        """The outcome on these rows."""

        def of(values: Any) -> Any:
            return values[rows] if isinstance(values, np.ndarray) else [values[i] for i in rows]

        known = {n: v for n, v in vars(self).items() if n != "classes" and v is not None}
        return Outcome(**{n: of(v) for n, v in known.items()}, classes=self.classes)

    def write(self, path: Path) -> None:
        content = asdict(self) | {"tokens": self.tokens.tolist()}
        if self.probabilities is not None:
            content["probabilities"] = self.probabilities.tolist()
        if self.pairs is not None:
            content["pairs"] = self.pairs.tolist()
        with atomic_write(path) as part:
            part.write_text(json.dumps(content), encoding="utf-8")

    @staticmethod
    def _classes(content: dict) -> tuple[np.ndarray | None, Sequence[str]]:
        known = content.get("probabilities")
        return None if known is None else np.asarray(known, dtype=np.float64), content.get(
            "classes", ()
        )

    @classmethod
    def read(cls, path: Path) -> Outcome:
        try:
            content = require_keys(
                json.loads(path.read_text(encoding="utf-8")), "tokens", "answers"
            )
            return cls(
                np.asarray(content["tokens"], dtype=np.float64).reshape(-1, 3),
                list(content["answers"]),
                content.get("sources"),
                *cls._classes(content),
                pairs=np.asarray(content["pairs"]).reshape(-1, 4) if content.get("pairs") else None,
            )
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise LorakitError(
                f"{path}: is damaged ({error}); start the run again under another name"
            ) from None


def token_sums(
    engine: Any, rows: Rows, *, max_rows: int = 16, max_tokens: int = 4096
) -> np.ndarray:
    """What an engine's `predict` says of each row, (n, 3) or more columns; no logits are kept."""
    made: Iterable[Batch] = batches.in_order(
        rows, rows.lengths, max_rows, max_tokens, engine.packing, engine.share
    )
    if engine.objective.MEAN_RATIO:
        made = batches.with_mean_ratio(engine, list(made))
    predicted = [(batch.rows[batch.starts], engine.predict(batch)) for batch in made]
    if engine.share[1] > 1:
        predicted = [one for some in engine.gather(predicted) for one in some]
    sums = np.zeros((len(rows), predicted[0][1].shape[1] if predicted else 3))
    for indices, lines in predicted:
        sums[indices] = lines
    return sums


def mean_loss(engine: Any, rows: Rows, **limits: int) -> float:
    """Nats per target token, each token weighing the same."""
    sums = token_sums(engine, rows, **limits)
    return float(sums[:, 0].sum() / max(sums[:, 1].sum(), 1))


def generate(
    engine: Any,
    rows: Rows,
    tokenizer: Any,
    stop_ids: list[int],
    max_new_tokens: int,
    *,
    together: int = 16,
    opening: int | None = None,
    progress: Callable[[int], None] = lambda n: None,
    accepts: Callable[[Sequence[int]], bool] | None = None,
) -> list[str | None]:
    """Greedy answers, prompts of like length together. A row without a question gives None.

    `accepts`: what answers are held to, see `Engine.generate`.
    """
    answers: list[str | None] = [None] * len(rows)
    found = answer_ids(
        engine,
        rows,
        stop_ids,
        max_new_tokens,
        together=together,
        progress=progress,
        accepts=accepts,
    )
    for i, ids in found.items():
        answers[i] = words(ids, tokenizer, opening)
    if engine.share[1] == 1:
        return answers
    return [
        next((a for a in found if a is not None), None)
        for found in zip(*engine.gather(answers), strict=True)
    ]


def answer_ids(
    engine: Any,
    rows: Rows,
    stop_ids: list[int],
    max_new_tokens: int,
    *,
    together: int = 16,
    progress: Callable[[int], None] = lambda n: None,
    accepts: Callable[[Sequence[int]], bool] | None = None,
) -> dict[int, list[int]]:
    """Index of each row with a question -> the tokens of its greedy answer; of several processes this one's share."""
    starts = rows.column("answer_start")
    answers: dict[int, list[int]] = {}
    asked = sorted((i for i in range(len(rows)) if starts[i] is not None), key=lambda i: -starts[i])
    which, of = engine.share
    for k in range(which * together, len(asked), of * together):
        group = asked[k : k + together]
        prompts = [np.asarray(rows[i]["ids"])[: starts[i]].tolist() for i in group]
        media = [rows.inputs(rows[i], None) for i in group] if rows.inputs else ()
        held = {"accepts": accepts} if accepts else {}
        found = engine.generate(prompts, max_new_tokens, stop_ids, media, **held)
        answers.update(zip(group, found, strict=True))
        progress(min(k + of * together, len(asked)))
    return answers


def prompts(rows: Rows) -> list[list[int]]:
    """What is asked: the tokens before an answer, of plain text its first half."""
    return [
        row["ids"][: len(row["ids"]) // 2 if start is None else start].tolist()
        for row, start in zip(rows, rows.column("answer_start"), strict=True)
    ]


def words(ids: list[int], tokenizer: Any, opening: int | None) -> str:
    """The words of a generated answer: without special tokens, and from behind the last `opening` token on."""
    if opening in ids:
        ids = ids[len(ids) - ids[::-1].index(opening) :]
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def choose(
    wanted: Sequence[str | dict] | str,
    defaults: Sequence[str],
    answers: bool,
    objective: Objective | None = None,
) -> dict[str, dict]:
    """metric -> its options. Metrics that need answers are dropped from the defaults when no row has one."""
    objective = objective or objectives.get("next_token")
    chosen: dict[str, dict] = {name: {} for name in objective.METRICS}
    given = {"tokens", "answers", "labels", *objective.MEASURES}
    for entry in defaults if wanted == "auto" else wanted:
        if isinstance(entry, dict) and len(entry) != 1:
            raise LorakitError(
                f"metrics: {entry!r} is not one metric with options, e.g. exact_match: {{pattern: …}}"
            )
        name, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
        needs = registry.load("metrics", name).NEEDS
        require(
            *getattr(registry.load("metrics", name), "PACKAGES", ()), purpose=f"the metric '{name}'"
        )
        if not given.intersection(needs):
            raise LorakitError(
                f"metrics: '{name}' needs {' or '.join(needs)}, which this task does not give"
            )
        if not {"tokens", "pairs"} & {*needs} and not answers:
            if wanted != "auto":
                raise LorakitError(f"metrics: '{name}' needs answers, and no test row has one")
            continue
        chosen[name] = options
    return chosen


def needs_answers(metrics: Mapping[str, dict]) -> bool:
    """Whether any of these metrics looks at generated answers."""
    return any("tokens" not in registry.load("metrics", name).NEEDS for name in metrics)


def statistics(
    name: str, options: dict, outcome: Outcome, references: Sequence[str | None]
) -> np.ndarray:
    """Per-row sufficient statistics of one metric, over the rows it applies to."""
    metric = registry.load("metrics", name)
    known = list(inspect.signature(metric.rows).parameters)[2:]
    for option in options:
        if option not in known:
            raise LorakitError(
                f"metrics: {name} has no option '{option}'; it has {', '.join(known) or 'none'}"
            )
    try:
        if "tokens" in metric.NEEDS:
            return metric.rows([], outcome.tokens, **options)
        if "pairs" in metric.NEEDS:
            return metric.rows([], outcome.pairs, **options)
        if "probabilities" in metric.NEEDS and outcome.probabilities is not None:
            return metric.rows(
                references, outcome.probabilities, **{"classes": outcome.classes, **options}
            )
        kept = [
            (r, a)
            for r, a in zip(references, outcome.answers, strict=True)
            if r is not None and a is not None
        ]
        return metric.rows([r for r, _ in kept], [a for _, a in kept], **options)
    except (ValueError, TypeError, re.error) as error:
        raise LorakitError(f"metrics: {name}: {error}") from None


def scores(
    chosen: dict[str, dict],
    before: Outcome,
    after: Outcome,
    references: Sequence[str | None],
    training_answers: Sequence[str] = (),
    seed: int = 0,
    files: Sequence[str | None] = (),
) -> dict[str, dict]:
    """`scores.json`: before, after, difference with its 95 % interval, rows; and against always giving the most
    frequent training answer, where the metric compares answers. Of a mixture, whose rows are of `files`, each file
    stands apart in `files`."""
    common = Counter(training_answers).most_common(1)
    constant = Outcome(
        after.tokens,
        [common[0][0] if common and a is not None else None for a in after.answers],
        after.sources,
    )
    out = {}
    for name, options in chosen.items():
        out[name] = entry(name, options, before, after, references, seed)
        if len(names := sorted({f for f in files if f})) > 1:
            out[name]["files"] = {
                file: _part(name, options, before, after, references, seed, files, file)
                for file in names
            }
        if {"answers", "labels"} & {*registry.load("metrics", name).NEEDS} and common:
            versus = entry(name, options, constant, after, references, seed)
            out[name]["most_frequent_answer"] = {
                "answer": common[0][0],
                "score": versus["before"],
                "difference": versus["difference"],
                "interval": versus["interval"],
            }
    return out


def _part(
    name: str,
    options: dict,
    one: Outcome,
    two: Outcome,
    references: Sequence[str | None],
    seed: int,
    files: Sequence[str | None],
    file: str,
) -> dict:
    """`entry` of the rows of one file."""
    mine = [i for i, other in enumerate(files) if other == file]
    told = [references[i] for i in mine]
    return entry(name, options, one.some(mine), two.some(mine), told, seed)


def entry(
    name: str,
    options: dict,
    one: Outcome,
    two: Outcome,
    references: Sequence[str | None],
    seed: int = 0,
) -> dict:
    """Two outcomes on the same rows by one metric, as it stands in `scores.json`; undefined numbers are null.

    `groups` says how many independent pieces the rows are, where that is fewer.
    """
    metric = registry.load("metrics", name)
    first, second = (statistics(name, options, o, references) for o in (one, two))
    groups = two.sources
    if groups and not {"tokens", "pairs"} & {*metric.NEEDS}:
        groups = [
            s
            for s, r, a in zip(groups, references, two.answers, strict=True)
            if r is not None and a is not None
        ]
    low, high, change, interval = intervals.paired_difference(
        metric.score, first, second, groups=groups, seed=seed
    )
    pieces = len(set(groups)) if groups else len(second)
    return {
        "before": _number(low),
        "after": _number(high),
        "difference": _number(change),
        "interval": [_number(interval.low), _number(interval.high)],
        "rows": len(second),
        **({"groups": pieces} if pieces < len(second) else {}),
        "higher_is_better": metric.HIGHER_IS_BETTER,
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


ENOUGH = 6  # a sign test of fewer pairs cannot reach p < 0.05 on two sides: 2 * 0.5**5 = 0.0625


def pieces(entry: Mapping[str, Any]) -> int:
    """Independent pieces of evidence behind a score: its groups, or its rows."""
    return entry.get("groups", entry["rows"])


def excludes_zero(entry: Mapping[str, Any]) -> bool:
    """Whether the interval of a difference lies on one side of zero."""
    low, high = entry["interval"]
    return low is not None and high is not None and (low > 0 or high < 0)


def better(entry: Mapping[str, Any]) -> bool | None:
    """True or False when the interval shows a direction, None when it does not.

    Of fewer than `ENOUGH` rows it never does: resampling three rows that all improved gives an interval without width.
    """
    if pieces(entry) < ENOUGH or not excludes_zero(entry):
        return None
    return (entry["difference"] > 0) == entry["higher_is_better"]

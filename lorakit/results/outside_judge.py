"""A judge behind an OpenAI-compatible address prefers the answer before or after training, or neither.

Each test row is asked in both orders, because judges favour a place (Zheng et al., arXiv 2306.05685 §3.4): an answer is
preferred when it is in both, else the row is a tie. The figure is the share of rows preferred after minus the share
preferred before, with the bootstrap interval of 95 % over rows. How often a judge agrees with itself is measured: over
the two orders, and on rows asked again in the same order. Assumptions: rows are independent; the judge's taste is not
checked against a person's.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.results import intervals
from lorakit.results.evaluate_again import free_name
from lorakit.results.evidence import counted
from lorakit.runs.folder import RunFolder, read_lines, write_json

KEY = "LORAKIT_JUDGE_KEY"  # environment variable with the address's key
ROWS, AGAIN, FEWEST = 100, 20, 30  # rows asked, asked again, and needed
TRIES, PATIENCE = 4, 120  # of a call; seconds of one
LOCAL = ("127.0.0.1", "localhost", "::1")
ASKED = """Two answers to the same question. Which one is better: right, complete, and in the form that is wanted?

Question:
{prompt}

Expected answer:
{reference}

Answer A:
{first}

Answer B:
{second}

Reply with one letter alone: A, B, or T for a tie."""


@dataclass
class Judge:
    """An address that answers chats, and what it has cost."""

    url: str  # up to /v1
    model: str
    calls: int = 0
    tokens: Counter[str] = field(default_factory=Counter)  # prompt_tokens, completion_tokens
    unreadable: int = 0  # replies without a letter, which count as ties

    @classmethod
    def at(cls, url: str, model: str = "") -> Judge:
        """The judge at an address; its first model unless one is named. Raises `LorakitError` where none answers."""
        judge = cls(url.rstrip("/"), model)
        place = urlsplit(judge.url)
        if place.scheme not in ("http", "https"):
            raise judge._unusable("it is no address", "e.g. http://127.0.0.1:8000/v1")
        if os.environ.get(KEY) and place.scheme == "http" and place.hostname not in LOCAL:
            raise judge._unusable(
                f"{KEY} would travel unencrypted", "name an https address, or unset the key"
            )
        if not model:
            try:
                judge.model = judge._call("models")["data"][0]["id"]
            except (KeyError, IndexError, TypeError):
                raise judge._unusable("it lists no model", "name one: --judge-model NAME") from None
        return judge

    def prefers(self, row: dict[str, Any], first: str, second: str) -> str:
        """A, B or T of two answers to a test row."""
        words = ASKED.format(
            prompt=row["prompt"], reference=row["reference"] or "(none)", first=first, second=second
        )
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": words}],
            "temperature": 0,
            "max_tokens": 16,
        }
        reply = self._call("chat/completions", asked)
        self.calls += 1
        self.tokens.update(
            {k: n for k, n in (reply.get("usage") or {}).items() if isinstance(n, int)}
        )
        try:
            text = str(reply["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise self._unusable("its reply is no chat completion", "check the address") from None
        letter = re.search(r"\b([ABT])\b", text)
        self.unreadable += letter is None
        return letter[1] if letter else "T"

    def _call(self, what: str, content: Any = None) -> dict[str, Any]:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"{self.url}/{what}", data, {"Content-Type": "application/json"}
        )
        if key := os.environ.get(KEY):  # not passed on to where a redirection leads
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        for left in reversed(range(TRIES)):
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                    return dict(json.load(answer))
            except urllib.error.HTTPError as error:
                if not left or not (error.code == 429 or error.code >= 500):
                    raise self._unusable(f"it answers {error.code} {error.reason}") from None
            except (OSError, ValueError, TypeError) as error:
                if not left:
                    raise self._unusable(f"it does not answer ({error})") from None
            time.sleep(2.0 ** (TRIES - 1 - left))
        raise AssertionError("the last try returns or raises")

    def _unusable(self, why: str, cure: str = "check the address, the key and the model") -> Any:
        return LorakitError(f"cannot judge: {why}", setting="--judge", value=self.url, cure=cure)


def judged(
    path: str | os.PathLike,
    url: str,
    *,
    judge: str = "",
    rows: int = ROWS,
    prices: tuple[float, float] | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Path, list[str]]:
    """Has the answers of a run's test rows judged; writes `scores-judge.json` beside its scores, never over a file.

    Args:
        url: an OpenAI-compatible address up to `/v1`; questions and answers are sent there.
        judge: name of the model; "" for the first that the address lists.
        rows: at most, the first of the test rows.
        prices: of a million tokens read and written, for the cost.

    Returns:
        the file written, and what it says.

    Raises:
        LorakitError: the run has no answers, or the address does not answer.
    """
    folder, started = RunFolder.of(path), time.monotonic()
    lines = [
        row
        for row in read_lines(folder.answers, "prompt", "reference", "before", "after")
        if row["before"] is not None and row["after"] is not None
    ][:rows]
    if not lines:
        raise LorakitError(
            "has no answers to judge", where=folder.path, cure="train with a test_fraction"
        )
    at = Judge.at(url, judge)
    verdicts, agreed = _asked(at, lines, progress)
    again = [one == at.prefers(row, row["before"], row["after"]) for row, one, _ in agreed[:AGAIN]]
    same = [together for *_, together in agreed]
    found: dict[str, Any] = {
        "judge": at.model,
        "rows": len(lines),
        "after": verdicts.count(1),
        "before": verdicts.count(-1),
        "ties": verdicts.count(0),
        "equal_answers": len(lines) - len(agreed),
        "same_in_both_orders": [sum(same), len(same)],
        "same_when_asked_again": [sum(again), len(again)],
        "unreadable": at.unreadable,
        "calls": at.calls,
        "tokens": dict(at.tokens),
        "seconds": time.monotonic() - started,
    }
    if prices:
        read, written = (at.tokens[f"{k}_tokens"] for k in ("prompt", "completion"))
        found["cost"] = (read * prices[0] + written * prices[1]) / 1e6
    value, interval = intervals.single(lambda some: float(some.mean()), np.array(verdicts)[:, None])
    found |= {"difference": value, "interval": [interval.low, interval.high]}
    target = free_name(folder, "judge", rewrite=False)
    write_json(target, found)
    return target, said(found)


def _asked(
    at: Judge, lines: list[dict[str, Any]], progress: Callable[[int, int], None]
) -> tuple[list[int], list[tuple[dict[str, Any], str, bool]]]:
    """(1, 0 or -1 of each row, (row, first reply, whether both orders agree) of the rows whose answers differ)."""
    verdicts, agreed = [], []
    for number, row in enumerate(lines):
        progress(number, len(lines))
        if row["before"].strip() == row["after"].strip():
            verdicts.append(0)
            continue
        one = at.prefers(row, row["before"], row["after"])
        two = at.prefers(row, row["after"], row["before"])
        mine, other = {"A": -1, "B": 1, "T": 0}[one], {"A": 1, "B": -1, "T": 0}[two]
        agreed.append((row, one, mine == other))
        verdicts.append(mine if mine == other else 0)
    return verdicts, agreed


def said(found: dict[str, Any]) -> list[str]:
    """What was judged, for people."""
    n, (low, high) = found["rows"], found["interval"]
    gap = f"{100 * found['difference']:+.0f} points (95 % interval {100 * low:+.0f} to {100 * high:+.0f})"
    verdict = (
        "The answers after training are preferred"
        if low > 0
        else "The answers before training are preferred"
        if high < 0
        else "No preference is shown"
    )
    if n < FEWEST:
        verdict, gap = "Cannot tell", f"{n} rows are too few; at least {FEWEST} are needed"
    tokens = found["tokens"]
    read, written = tokens.get("prompt_tokens", 0), tokens.get("completion_tokens", 0)
    cost = f", cost {found['cost']:.4f}" if "cost" in found else ""
    return [
        f"{verdict}: {gap}.",
        f"Preferred after: {counted(found['after'], n)}; before: {counted(found['before'], n)}; "
        f"ties: {found['ties']}, of which {found['equal_answers']} are equal answers.",
        f"{found['judge']} says the same in both orders for {counted(*found['same_in_both_orders'])}, and when it "
        f"is asked again for {counted(*found['same_when_asked_again'])}. Unreadable replies: {found['unreadable']}.",
        f"{found['calls']} calls, {read:,} tokens read, {written:,} written, {found['seconds']:.0f} s{cost}.",
    ]

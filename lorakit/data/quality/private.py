"""Secrets and e-mail-like strings: a tuned model says again what it was trained on. Shown shortened."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from lorakit.data import duplicates
from lorakit.data.example import Example
from lorakit.data.quality import SHOWN, YELLOW, Finding, bars, some

TITLE = "private strings"
SAMPLED = False
# Shapes of keys as their issuers document them.
SECRETS = re.compile(
    r"(?P<private_key>-----BEGIN [A-Z ]*PRIVATE KEY-----)"
    r"|(?<![\w-])(?:(?P<Hugging_Face_token>hf_[A-Za-z0-9]{30,})|(?P<GitHub_token>gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,})"
    r"|(?P<API_key>sk-[A-Za-z0-9_-]{20,})|(?P<AWS_key>(?:AKIA|ASIA)[A-Z0-9]{16})|(?P<Google_key>AIza[\w-]{35})"
    r"|(?P<Slack_token>xox[abprs]-[\w-]{10,})|(?P<web_token>eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}))"
)
# One of these stands in whatever `SECRETS` finds; to look for them first is four times as fast.
MARKS = (
    "-----BEGIN", "hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "sk-",
    "AKIA", "ASIA", "AIza", "xox", "eyJ",
)  # fmt: skip
PASSWORD = re.compile(
    r"(?i)\b(?:password|passwd|secret|api[_-]?key|access[_-]?token)\s*[:=]\s*['\"]?[^\s'\"]{8,64}"
)
MAIL = re.compile(r"[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")


class Check:
    def __init__(self, encode: Any, max_length: int):
        self.counts: Counter[str] = Counter()
        self.places: dict[str, list[str]] = {}

    def _note(self, kind: str, found: str, example: Example) -> None:
        self.counts[kind] += 1
        places = self.places.setdefault(kind, [])
        if len(places) < SHOWN:
            places.append(f"{example.where}: {found[:6]}…")

    def see(self, example: Example, set: str) -> None:
        words = duplicates.text(example)
        for mark in MARKS:
            if mark in words:
                if found := SECRETS.search(words):
                    self._note((found.lastgroup or "").replace("_", " "), found[0], example)
                break
        if (":" in words or "=" in words) and (found := PASSWORD.search(words)):
            self._note("password", found[0], example)
        if "@" in words and (found := MAIL.search(words)):
            self._note("e-mail address", found[0], example)

    def findings(self) -> list[Finding]:
        return [
            Finding(
                "warning",
                f"{kind}, or what looks like one, in {some(n)}: a tuned model can say again what it "
                "was trained on; remove or replace it",
                self.places[kind],
                n,
            )
            for kind, n in self.counts.items()
        ]

    def facts(self) -> dict[str, Any]:
        return dict(self.counts)

    def draw(self, axes: Any) -> int:
        return bars(axes, self.counts, TITLE, YELLOW) if self.counts else 0

"""The steps before training: data, columns, model, settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from lorakit.common import strict_yaml
from lorakit.common.errors import LorakitError
from lorakit.common.text import label
from lorakit.models.catalogue import catalogue
from lorakit.notebook.studio import columns, uploads
from lorakit.notebook.studio.page import PRESETS, Page
from lorakit.run import Run

EXAMPLE = "This is example data, to look around with. Drop your own file above."
# Purposes of models that do not write text; they are shown last.
OTHER = ("sorts", "captions", "speech", "questions about pictures")
PROGRAM = ("data", "name", "output_dir")  # set elsewhere on the page


class Preparing(Page):
    """Events of the first four steps."""

    def __init__(self, run: Run, folders: Sequence[str] = ()):
        super().__init__(run, folders)
        self._incoming: tuple[str, uploads.Incoming] | None = None
        self._planned = self._checked = 0

    # 1 Data

    def vue_begin(self, file: dict[str, Any]) -> None:
        """An upload announces itself; one that was on its way from here is given up."""

        def work() -> None:
            if self._incoming:
                self._incoming[1].close()
            self._incoming = None
            self._incoming = (file["id"], self.desk.incoming(file["name"], int(file["size"])))

        ready = self.tried(work)
        self.acknowledged = f"{file['id']}:{0 if ready else 'refused'}"

    def vue_piece(self, piece: dict[str, Any], buffers: Sequence[memoryview] = ()) -> None:
        """The next bytes of an upload; after the last ones it is kept."""
        if not self._incoming or self._incoming[0] != piece["id"]:
            self.acknowledged = f"{piece['id']}:refused"
            return
        incoming = self._incoming[1]

        def work() -> None:
            incoming.add(b"".join(bytes(b) for b in buffers))
            if incoming.size != piece["end"]:
                raise LorakitError("a piece was lost on the way", cure="send the file again")

        if not self.tried(work):
            incoming.close()
            self._incoming = None
            self.acknowledged = f"{piece['id']}:refused"
            return
        self.acknowledged = f"{piece['id']}:{piece['end']}"
        if incoming.size >= (incoming.declared or 0):
            self._incoming = None
            self.later("Reading the file …", lambda: self._arrived(self.desk.keep(incoming)))

    def vue_use(self, path: str) -> None:
        self.later("Reading …", partial(self._use, str(path or "").strip()))

    def vue_clean(self, _: Any) -> None:
        self.later("Writing a copy …", self._leave_out)

    def _use(self, path: str) -> None:
        self.desk.use(path)
        self._arrived("")

    def _leave_out(self) -> None:
        self.desk.leave_out()
        self._arrived("")

    def _arrived(self, done: str) -> None:
        """Other data: their columns, a guess of what stands where, and what is wrong with them."""
        self.vue_dismiss(None)
        self.files, self.name = self.desk.files(), self.desk.run.name
        found, rows = self.desk.head()
        self.table = {
            "name": Path(str(self.desk.run.data)).name,
            "columns": found,
            "rows": [[label(cell, 160) for cell in row] for row in rows],
            "example": self.desk.example,
        }
        if not self.desk.run.columns:
            self.mapping = columns.guessed(found, rows)
        if self.table["example"]:  # nobody waits for what is known to be usable
            self.table = {**self.table, "verdict": EXAMPLE, "kind": "info"}
        else:
            self._check(done)

    def _check(self, done: str = "") -> None:
        """What is wrong with the rows, unless other data came meanwhile."""
        self._checked += 1
        asked = self._checked

        def work() -> None:
            self._preview()
            try:
                checked = self.desk.check()
            except LorakitError as error:
                if asked != self._checked:
                    return
                cure = " Choose the columns in the next step." if self.table["columns"] else ""
                self.table = {**self.table, "verdict": f"{error.message}{cure}", "kind": "warning"}
                return
            if asked != self._checked:
                return
            if not self.mapping["preview"]:
                seen = [columns.understood(row.fields) for row, _ in checked.sample[:3]]
                self.mapping = {**self.mapping, "preview": [row for row in seen if row]}
            lines = checked.lines()
            words = ". ".join(filter(None, [done, checked.summary().replace("above", "below")]))
            kind = "success" if checked.usable else "warning"
            bad = len(checked.report.rejected)
            rejected = [f"{r.where}: {r.reason}" for r in checked.report.rejected[:20]]
            more = {"verdict": words, "kind": kind, "bad": bad, "findings": [*lines[2:], *rejected]}
            self.table = {**self.table, **more}

        self.later("Checking every row …", work)

    # 2 Columns

    def _look_at_rows(self) -> None:
        if not self.mapping["preview"]:
            self._check()

    def vue_map(self, change: dict[str, str]) -> None:
        self.mapping = columns.changed(self.mapping, change, self.table["columns"])
        given = {p["name"]: p["column"] for p in self.mapping["parts"] if p["column"]}
        if len(given) == len(self.mapping["parts"]) and self.tried(
            lambda: self.desk.change(columns=given or None, task=None)
        ):
            self._check()

    def _preview(self) -> None:
        """The first rows as the model will see them, where the columns are known."""
        if not self.desk.run.columns:
            given = {p["name"]: p["column"] for p in self.mapping["parts"] if p["column"]}
            if given and len(given) == len(self.mapping["parts"]):
                self.desk.change(columns=given)
        rows = [dict(zip(self.table["columns"], row, strict=False)) for row in self.table["rows"]]
        self.mapping = {**self.mapping, "preview": columns.preview(self.desk.run.columns, rows)}

    # 3 Model

    def _show_models(self) -> None:
        def work() -> None:
            facts, best = self.desk.facts, self.desk.recommend()
            self.model = self.desk.run.model
            self._show_settings()
            self.machine = (facts.cards[0].name if facts.cards else facts.device.upper()) + (
                f", {facts.device_memory / 1e9:.0f} GB"
            )
            shown = sorted(catalogue(), key=lambda m: (m.name != best, m.purpose.startswith(OTHER)))
            self.models = [
                {
                    "name": m.name,
                    "size": m.size,
                    "purpose": m.purpose,
                    "languages": m.languages,
                    "licence": m.licence,
                    "gated": m.gated,
                    "fits": m.fits(facts),
                    "memory": f"{m.memory(facts) / 1e9:.0f}",
                    "recommended": m.name == best,
                }
                for m in shown
            ]

        self.later("Looking at this machine …", work)

    def vue_choose(self, model: str) -> None:
        if self.tried(lambda: self.desk.choose(str(model).strip())):
            self.model = self.desk.run.model
            self._show_settings()

    def vue_find(self, words: str) -> None:
        def work() -> None:
            from huggingface_hub import HfApi

            try:
                found = HfApi().list_models(
                    search=str(words), limit=12, pipeline_tag="text-generation"
                )
                self.hub = [m.id for m in found]
            except Exception as error:  # of the network, of the hub
                raise LorakitError(f"the hub cannot be reached ({type(error).__name__})") from None

        self.later("Asking the hub …", work)

    # 4 Settings

    def _show_settings(self) -> None:
        values = self.desk.run.model_dump()
        self.settings = [
            {
                "name": name,
                "value": json.dumps(values[name])
                if isinstance(values[name], (dict, list))
                else values[name],
                "help": field.description,
                "choices": _choices(field),
            }
            for name, field in Run.model_fields.items()
            if name not in PROGRAM
        ]
        self.preset = next(
            (
                n
                for n, (*_, given) in PRESETS.items()
                if given.items() <= self.desk.run.model_dump().items()
            ),
            "",
        )
        self.name = self.desk.run.name

    def vue_pick(self, preset: str) -> None:
        known = {name: None for *_, given in PRESETS.values() for name in given}
        self._changed(lambda: self.desk.change(**{**known, **PRESETS[preset][2]}))

    def vue_set(self, change: dict[str, Any]) -> None:
        def work() -> None:
            name, value = change["name"], change["value"]
            if isinstance(value, str) and name != "name":
                try:
                    value = strict_yaml.load(value)
                except Exception:  # as of --set: values raise almost anything
                    raise LorakitError(f"{name}: {value!r} cannot be read as YAML") from None
            self.desk.change(**{name: None if value == "" else value})

        self._changed(work)

    def _changed(self, work: Callable[[], Any]) -> None:
        if self.tried(work):
            self._show_settings()
            self._count()

    def _count(self) -> None:
        """Memory and time of these settings, unless they have changed meanwhile."""
        self._planned += 1
        asked = self._planned

        def work() -> None:
            try:
                plan = self.desk.plan()
            except LorakitError as error:
                found = {"text": str(error), "kind": "error"}
            else:
                kind = "warning" if plan.warnings else "success"
                found = {"text": "\n".join([str(plan), *plan.warnings]), "kind": kind}
            if asked == self._planned:
                self.plan = found

        self.later("Counting memory and time …", work)


def _choices(field: Any) -> list[Any] | None:
    """The values of a setting that has few."""
    if field.annotation is bool:
        return [True, False]
    values = get_args(field.annotation)
    return list(values) if values and all(isinstance(v, str) for v in values) else None

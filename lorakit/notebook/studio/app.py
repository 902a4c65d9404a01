"""The studio: from a file to a chat with the result, without writing code.

    from lorakit.notebook.studio.app import Studio
    Studio(lorakit.Run(data="data/triage.jsonl"))

A thin view over `Desk`: the page is `studio.vue` (Vuetify, by ipyvuetify, on ipywidgets 7 and 8); every trait is a part
of what it shows, every `vue_` method an event of it. What takes long runs in a thread, training in a process.
"""

from __future__ import annotations

import base64
import contextlib
import mimetypes
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.common.text import label
from lorakit.notebook.live import Panel
from lorakit.notebook.look_through import LookThrough
from lorakit.notebook.studio.controller import EMBEDDED
from lorakit.notebook.studio.page import enable_on_colab
from lorakit.notebook.studio.preparing import Preparing
from lorakit.notebook.studio.uploads import size
from lorakit.results import report
from lorakit.results.verdict import MEANING, named
from lorakit.run import Run
from lorakit.runs.phases import TITLES, phase


class Studio(Preparing):
    """Shown by being the last line of a cell."""

    def __init__(self, run: Run, folders: Sequence[str] = ()):
        enable_on_colab()
        super().__init__(run, folders)
        self._panel: Panel | None = None
        self._export: Path | None = None
        self.tick()
        going = [line["name"] for line in self.runs if line["status"] in ("running", "queued")]
        self.looked = (going or [line["name"] for line in self.runs] or [""])[0]
        if going:  # started from a page that was closed
            self.step = 5
        self._show_settings()
        self._arrived("")
        threading.Thread(target=self._live, daemon=True).start()

    def __repr__(self) -> str:
        runs = ", ".join(f"{line['name']} ({line['status']})" for line in self.runs) or "none yet"
        return (
            f"lorakit studio: data {self.table.get('name', '')}, model {self.desk.run.model}, runs: {runs}. "
            "Its page shows in JupyterLab, Colab, Kaggle and VS Code, or by itself with `make studio`."
        )

    def tick(self) -> None:
        """What changes by itself: the runs, and the one that is looked at."""
        super().tick()
        if self.step == 5 and self.looked:
            self._show_run()

    def vue_go(self, step: int) -> None:
        """Turns to a step, and fills it."""
        self.vue_dismiss(None)
        self.step, self.done = (
            int(step),
            sorted({*self.done, self.step} - {int(step)} | {*range(1, int(step))}),
        )
        {
            2: self._look_at_rows,
            3: self._show_models,
            4: self._count,
            5: self.tick,
            6: self._show_result,
            7: self._examples,
        }.get(self.step, lambda: None)()

    # 5 Train

    def vue_start(self, _: Any) -> None:
        self.later("Starting …", lambda: self._started(self.desk.start()))

    def vue_resume(self, _: Any) -> None:
        self.later("Resuming …", lambda: self._started(self.desk.resume(self.looked)))

    def _started(self, job: Any) -> None:
        self.looked, self.run = job.folder.path.name, {"name": "", "percent": 0}
        self.tick()

    def vue_stop(self, _: Any) -> None:
        name = self.looked
        self.later(
            "Stopping after this step, with a checkpoint …", lambda: self.desk.job(name).stop()
        )

    def _show_run(self) -> None:
        job = self.desk.job(self.looked)
        if self._panel is None or self._panel.folder.path != job.folder.path:
            self._panel = Panel(job.folder)
        updates, validations = self._panel.tail.read()
        now, status = phase(job.folder, len(updates)), job.status
        line = self._panel.line(status, updates, validations)
        going = job.running
        self.run = {
            "name": self.looked,
            "status": status,
            "running": going,
            "resumable": not going and status in ("interrupted", "stopped", "failed"),
            "phases": [
                {
                    "title": t.capitalize(),
                    "state": "done"
                    if i < now.place
                    else "now"
                    if i == now.place and going
                    else "later",
                }
                for i, t in enumerate(TITLES)
            ],
            "percent": round(100 * now.share),
            "line": line,
            "error": ""
            if status in ("running", "done")
            else str(job.folder.record.get("error") or ""),
            "curve": self._panel.picture(line) if updates else "",
            "samples": self._samples(),
            "log": job.log(40),
        }
        if (
            status == "done"
            and not going
            and self.result.get("name") != self.looked
            and self.step == 5
        ):
            self.vue_go(6)

    def _samples(self) -> list[dict[str, Any]]:
        """Per prompt the answers, the oldest first."""
        by: dict[str, list[str]] = {}
        for row in self.desk.samples(self.looked)[-60:]:
            when = f"step {row['update']}" if isinstance(row["update"], int) else row["update"]
            by.setdefault(row["prompt"], []).append(f"{when}: {row['answer']}")
        return [{"prompt": label(p, 200), "answers": answers} for p, answers in by.items()]

    # 6 Result

    def vue_look(self, name: str) -> None:
        self.looked = str(name)
        going = any(r["name"] == name and r["status"] in ("running", "queued") for r in self.runs)
        self.vue_go(5 if going else 6)

    def _show_result(self) -> None:
        if not self.looked:
            return
        self.suspects = None

        def work() -> None:
            folder = self.desk.job(self.looked).folder
            if folder.record["status"] != "done":
                status = folder.record["status"]
                self.result = {
                    "why": f"{self.looked} is {status}: a verdict comes when it is done."
                }
                return
            found, page = report.context(folder), folder / "report.html"
            kept = ("kind", "headline", "notes", "answers", "answers_note")
            self.result = {
                **{key: found[key] for key in kept},
                "name": self.looked,
                "scores": [
                    {**s, "metric": named(s["metric"]), "meaning": MEANING.get(s["metric"], "")}
                    for s in found["scores"]
                ],
                "report": page.read_text(encoding="utf-8") if page.exists() else "",
                "folded": self.desk.folded(self.looked),
            }

        self.later("Reading the scores …", work)

    def vue_look_through(self, _: Any) -> None:
        """The answers of the run that look wrong, to be looked through; a cleaned file becomes the data."""
        name = self.looked

        def use(target: Path) -> None:
            self.desk.use(str(target))
            self._arrived(f"{target.name}: the cleaned rows are the data of the next run")

        def work() -> None:
            path = self.desk.suspects(name)
            target = self.desk.folder / "uploads" / f"{name}-cleaned.jsonl"
            self.suspects = LookThrough(path, target, use)

        self.later("Looking for wrong answers …", work)

    def vue_clone(self, _: Any) -> None:
        if self.tried(lambda: self.desk.clone(self.looked)):
            self._show_settings()
            self._arrived("")
            self.vue_go(4)

    def vue_remove(self, name: str) -> None:
        if self.tried(lambda: self.desk.delete(name)):
            self.say(f"{name} is deleted", "success")
            self.tick()
            self.looked = self.runs[0]["name"] if self.looked == name and self.runs else self.looked

    def vue_compare(self, _: Any) -> None:
        def work() -> None:
            names = [r["name"] for r in self.runs if r["status"] in ("done", "stopped", "running")]
            text, picture = self.desk.compare(names)
            encoded = base64.b64encode(picture).decode()
            self.comparison = {"text": text, "picture": f"data:image/png;base64,{encoded}"}

        self.later("Comparing …", work)

    # 7 Use

    def _examples(self) -> None:
        if self.looked and self.chat.get("name") != self.looked:
            prompts: list[str] = []
            with contextlib.suppress(LorakitError):
                prompts = list(dict.fromkeys(row["prompt"] for row in self.desk.asked(self.looked)))
            self.chat = {**self.chat, "name": self.looked, "turns": [], "examples": prompts[:3]}

    def vue_system(self, text: str) -> None:
        self.chat = {**self.chat, "system": str(text or "")}

    def vue_beside(self, on: bool) -> None:
        self.chat = {**self.chat, "base": bool(on)}

    def vue_forget(self, _: Any) -> None:
        self.chat = {**self.chat, "turns": []}
        self.later("Forgetting …", self.desk.talk(self.looked).forget)

    def vue_ask(self, question: str) -> None:
        """Streams the answer of the tuned model and, beside it, of its base."""
        beside, system = self.chat["base"], self.chat["system"]
        turn: dict[str, Any] = {
            "question": str(question),
            "answer": "",
            "base": "" if beside else None,
            "ended": False,
        }
        place = len(self.chat["turns"])
        self.chat = {**self.chat, "turns": [*self.chat["turns"], turn]}

        def grow(**parts: Any) -> None:
            turn.update(parts)
            turns = [*self.chat["turns"]]
            turns[place : place + 1] = [dict(turn)]
            self.chat = {**self.chat, "turns": turns}

        def work() -> None:
            talk = self.desk.talk(self.looked)
            for part, adapted in (
                (("answer", True), ("base", False)) if beside else (("answer", True),)
            ):
                for piece in talk.ask(turn["question"], adapted=adapted, system=system):
                    grow(**{part: turn[part] + piece})
            grow(ended=True)

        self.later("The model answers …", work)

    def vue_correct(self, correction: dict[str, Any]) -> None:
        question = self.chat["turns"][int(correction["turn"])]["question"]
        if self.tried(lambda: self.desk.correct(self.looked, question, correction["answer"])):
            self.say(f"Kept in {self.looked}-corrections.jsonl, to train on next time", "success")

    def vue_make(self, asked: dict[str, str]) -> None:
        name = self.looked
        types: list[str] = next(
            (t["types"] for t in self.targets if t["name"] == asked["target"]), []
        )
        kind = asked["type"] if asked["type"] in types else None

        def work() -> None:
            self.exported = {}
            try:
                path = self.desk.export(name, asked["target"], kind)
            except LorakitError as error:
                self.exported = {"text": str(error), "kind": "error"}
                return
            self._export = path if path.is_dir() else path.parent
            file = self.desk.packed(path)
            self.exported = {
                "text": f"Written and verified: {path.relative_to(self.desk.home)}",
                "kind": "success",
                "file": f"{name}-{file.name}",
                "size": f"{size(file) / 1e6:.1f} MB",
                "href": _link(file) if size(file) <= EMBEDDED else "",
            }

        self.later("Exporting, and proving that it answers the same …", work)

    def vue_push(self, asked: dict[str, str]) -> None:
        def work() -> None:
            if not self._export or not asked["repository"] or not asked["token"]:
                raise LorakitError("export first, then name a repository and a token of the hub")
            self.say(
                f"Uploaded: {self.desk.push(self._export, asked['repository'], asked['token'])}",
                "success",
            )

        self.later("Uploading …", work)


def _link(file: Path) -> str:
    """The file itself, as a link that a page can save wherever it is shown."""
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"

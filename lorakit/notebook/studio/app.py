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
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import ipyvuetify
import traitlets

from lorakit.common.errors import LorakitError
from lorakit.common.text import label
from lorakit.models.catalogue import catalogue, recommended
from lorakit.notebook.live import EVERY, SHARE, Panel
from lorakit.notebook.studio import columns, uploads
from lorakit.notebook.studio.controller import EMBEDDED, Desk, size
from lorakit.results import report
from lorakit.results.verdict import MEANING, named
from lorakit.run import Run
from lorakit.runs.phases import TITLES, phase

STEPS = ("Data", "Columns", "Model", "Settings", "Train", "Result", "Use")
PRESETS = {
    "quick": ("Quick look", "One pass over the rows: does it work at all?", {"epochs": 1}),
    "good": ("Good", "Three passes; right for most data.", {"epochs": 3}),
    "thorough": (
        "Thorough",
        "Six passes with a larger adapter; stops when it no longer gets better.",
        {"epochs": 6, "rank": 32, "alpha": 64, "early_stopping": 3},
    ),
}
TARGETS = {
    "gguf": ("GGUF, for Ollama, LM Studio, llama.cpp", ("q8_0", "f16", "q4_0")),
    "adapter": ("Adapter alone (PEFT), small", ()),
    "merged": ("Whole model (transformers)", ("bf16", "fp16", "fp32")),
    "mlx": ("MLX, for Macs", ("4bit", "8bit")),
    "onnx": ("ONNX", ("int8", "fp32")),
}
PROGRAM = ("data", "name", "output_dir", "columns", "format")  # set elsewhere on the page


def _synced(kind: Callable[..., Any], *default: Any) -> Any:
    return kind(*default).tag(sync=True)


class Studio(ipyvuetify.VuetifyTemplate):
    """Shown by being the last line of a cell."""

    template_file = (__file__, "studio.vue")
    steps = _synced(traitlets.List, list(STEPS))
    step = _synced(traitlets.Int, 1)
    done = _synced(traitlets.List, [])
    machine = _synced(traitlets.Unicode, "")
    busy = _synced(traitlets.Unicode, "")
    message = _synced(traitlets.Dict, {"text": "", "kind": "info"})
    limit = _synced(traitlets.Int, uploads.LIMIT // 10**6)
    accept = _synced(traitlets.Unicode, ",".join([*uploads.SUFFIXES, ".gz"]))
    acknowledged = _synced(traitlets.Unicode, "")
    files = _synced(traitlets.List, [])
    table = _synced(traitlets.Dict, {})
    roles = _synced(traitlets.List, columns.titles())
    mapping = _synced(traitlets.Dict, {"parts": [], "preview": []})
    models = _synced(traitlets.List, [])
    model = _synced(traitlets.Unicode, "")
    hub = _synced(traitlets.List, [])
    presets = _synced(
        traitlets.List, [{"name": n, "title": t, "text": x} for n, (t, x, _) in PRESETS.items()]
    )
    preset = _synced(traitlets.Unicode, "")
    settings = _synced(traitlets.List, [])
    plan = _synced(traitlets.Dict, {"text": "", "kind": "info"})
    name = _synced(traitlets.Unicode, "")
    run = _synced(traitlets.Dict, {"name": "", "percent": 0})
    runs = _synced(traitlets.List, [])
    looked = _synced(traitlets.Unicode, "")
    result = _synced(traitlets.Dict, {})
    comparison = _synced(traitlets.Dict, {})
    chat = _synced(traitlets.Dict, {"turns": [], "examples": [], "base": False, "system": ""})
    targets = _synced(
        traitlets.List,
        [{"name": n, "title": t, "types": list(k)} for n, (t, k) in TARGETS.items()],
    )
    exported = _synced(traitlets.Dict, {})

    def __init__(self, run: Run, folders: Sequence[str] = ()):
        super().__init__()
        self.desk = Desk(run, folders)
        self._incoming: tuple[str, uploads.Incoming] | None = None
        self._panel: Panel | None = None
        self._export: Path | None = None
        self._planned = 0
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

    # Work beside the page

    def say(self, text: str, kind: str = "info") -> None:
        """A message above the page: info, success, warning or error."""
        self.message = {"text": text, "kind": kind}

    def tried(self, call: Callable[[], Any]) -> bool:
        """Calls; when that is refused, the message says why."""
        try:
            call()
            return True
        except (LorakitError, OSError) as error:
            self.say(str(error), "error")
        except Exception as error:  # nothing that goes wrong may end the page
            self.say(f"{type(error).__name__}: {error}", "error")
        return False

    def later(self, words: str, work: Callable[[], Any]) -> None:
        """Does what takes long in a thread, with a word about it meanwhile."""

        def run() -> None:
            self.busy = words
            self.tried(work)
            self.busy = ""

        threading.Thread(target=run, daemon=True).start()

    def _live(self) -> None:
        pause = EVERY
        while True:
            time.sleep(pause)
            began = time.thread_time()
            with contextlib.suppress(Exception):  # a file that is just being replaced
                self.tick()
            pause = max(EVERY, (time.thread_time() - began) / SHARE)

    def tick(self) -> None:
        """What changes by itself: the runs, and the one that is looked at."""
        self.runs = self.desk.jobs()
        if self.step == 5 and self.looked:
            self._show_run()

    def vue_dismiss(self, _: Any) -> None:
        self.message = {"text": "", "kind": "info"}

    def vue_go(self, step: int) -> None:
        """Turns to a step, and fills it."""
        self.step, self.done = (
            int(step),
            sorted({*self.done, self.step} - {int(step)} | {*range(1, int(step))}),
        )
        {
            3: self._show_models,
            4: self._count,
            5: self.tick,
            6: self._show_result,
            7: self._examples,
        }.get(self.step, lambda: None)()

    # 1 Data

    def vue_begin(self, file: dict[str, Any]) -> None:
        def work() -> None:
            self._incoming = (file["id"], self.desk.incoming(file["name"], int(file["size"])))

        ready = self.tried(work)
        self.acknowledged = f"{file['id']}:{0 if ready else 'refused'}"

    def vue_piece(self, piece: dict[str, Any], buffers: Sequence[memoryview] = ()) -> None:
        """The next bytes of an upload; after the last ones it is kept."""
        if not self._incoming or self._incoming[0] != piece["id"]:
            return
        incoming = self._incoming[1]
        added = self.tried(lambda: incoming.add(b"".join(bytes(b) for b in buffers)))
        self.acknowledged = f"{piece['id']}:{piece['end'] if added else 'refused'}"
        if added and incoming.size >= (incoming.declared or 0):
            self.later("Reading the file …", lambda: self._arrived(self.desk.keep(incoming)))

    def vue_use(self, path: str) -> None:
        self.later("Reading …", lambda: (self.desk.use(str(path or "").strip()), self._arrived("")))

    def vue_clean(self, _: Any) -> None:
        self.later("Writing a copy …", lambda: (self.desk.leave_out(), self._arrived("")))

    def _arrived(self, done: str) -> None:
        """Other data: their columns, a guess of what stands where, and what is wrong with them."""
        self.files, self.name = self.desk.files(), self.desk.run.name
        found, rows = self.desk.head()
        self.table = {
            "name": Path(self.desk.run.data).name,
            "columns": found,
            "rows": [[label(cell, 160) for cell in row] for row in rows],
        }
        if not self.desk.run.columns:
            self.mapping = columns.guessed(found, rows)
        self._check(done)

    def _check(self, done: str = "") -> None:
        def work() -> None:
            self._preview()
            try:
                checked = self.desk.check()
            except LorakitError as error:
                cure = " Choose the columns in the next step." if self.table["columns"] else ""
                self.table = {**self.table, "verdict": f"{error.message}{cure}", "kind": "warning"}
                return
            lines = checked.lines()
            words = ". ".join(filter(None, [done, *lines[1:2]]))
            kind = "success" if checked.usable else "warning"
            bad = len(checked.report.rejected)
            rejected = [f"{r.where}: {r.reason}" for r in checked.report.rejected[:20]]
            more = {"verdict": words, "kind": kind, "bad": bad, "findings": [*lines[2:], *rejected]}
            self.table = {**self.table, **more}

        self.later("Checking every row …", work)

    # 2 Columns

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
            facts, self.model = self.desk.facts, self.desk.run.model
            best = recommended(facts).name
            self.machine = (facts.cards[0].name if facts.cards else facts.device.upper()) + (
                f", {facts.device_memory / 1e9:.0f} GB"
            )
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
                for m in catalogue()
            ]

        self.later("Looking at this machine …", work)

    def vue_choose(self, model: str) -> None:
        if self.tried(lambda: self.desk.change(model=str(model).strip())):
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
                "value": values[name],
                "help": field.description,
                "choices": _choices(field),
            }
            if not isinstance(values[name], (dict, list))
            else {
                "name": name,
                "value": str(values[name] or ""),
                "help": field.description,
                "choices": None,
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
        self._change(**{**known, **PRESETS[preset][2]})

    def vue_set(self, change: dict[str, Any]) -> None:
        from lorakit.common import strict_yaml

        text = change["value"]
        value = (
            strict_yaml.load(text) if isinstance(text, str) and change["name"] != "name" else text
        )
        self._change(**{change["name"]: None if value == "" else value})

    def _change(self, **changes: Any) -> None:
        if self.tried(lambda: self.desk.change(**changes)):
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
                    "title": t,
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
            }

        self.later("Reading the scores …", work)

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
        turn = {
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
        kind = asked["type"] if asked["type"] in TARGETS.get(asked["target"], ("", ()))[1] else None

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
                "file": file.name,
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


def _choices(field: Any) -> list[Any] | None:
    """The values of a setting that has few."""
    if field.annotation is bool:
        return [True, False]
    values = get_args(field.annotation)
    return list(values) if values and all(isinstance(v, str) for v in values) else None


def _link(file: Path) -> str:
    """The file itself, as a link that a page can save wherever it is shown."""
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"

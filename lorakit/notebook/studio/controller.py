"""What the studio knows and does, without a widget: settings, data, runs, questions, exports. All of it in files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write, remove, sweep
from lorakit.data import sources
from lorakit.data.example import Example
from lorakit.machine import hardware
from lorakit.machine.hardware import Facts
from lorakit.models.catalogue import recommended
from lorakit.notebook.studio import uploads
from lorakit.notebook.studio.children import EXPORT, PUSH, SUSPICIOUS, answers_of
from lorakit.notebook.studio.incoming import usable
from lorakit.notebook.studio.plan import Plan
from lorakit.notebook.studio.talk import Talk
from lorakit.planning.check import Checked, check
from lorakit.planning.clean_copy import fix
from lorakit.planning.setup import setup
from lorakit.planning.unusual import unusual
from lorakit.results.evidence.suspicious import table_path
from lorakit.results.logs import read as read_log
from lorakit.results.verdict import change, primary
from lorakit.run import Run
from lorakit.runs.folder import read_lines
from lorakit.training.launch import Job, launch

OWN = "+studio"  # of the folder of runs: no run can have this name, so deleting one never deletes uploads
PATHS = (  # settings that name files
    "data", "replay", "validation_data", "test_data", "media_folder", "chat_template", "model",
)  # fmt: skip
TOY_RATE = 3e-3  # learning rate of `tiny`
EMBEDDED = 100_000_000  # bytes of a download that travels inside the page


class Desk:
    """One folder of runs, `home`, and the settings of the next one."""

    def __init__(self, run: Run, folders: Sequence[str | os.PathLike] = ()):
        self.home = Path(run.output_dir).resolve()
        self.folder = self.home / OWN  # uploads and the settings that are being made
        self.examples = sources.example_data("triage.jsonl").parent
        self.roots = uploads.roots(Path.cwd(), self.examples, *folders)
        self.home.mkdir(parents=True, exist_ok=True)
        self.roots.append(self.home)
        self.run = run.with_(output_dir=str(self.home))
        self._talk: Talk | None = None
        self._moved()
        sweep(self.folder)  # what was on its way when a page or a kernel ended
        self._restore()

    # Settings

    def choose(self, model: str) -> Run:
        """Another base model. A toy learns at a rate that would ruin a real one; a rate of the user's own is kept."""
        rate = self.run.given().get("learning_rate", TOY_RATE)
        if rate == TOY_RATE:
            rate = TOY_RATE if model == "tiny" else None
        return self.change(model=model, learning_rate=rate)

    def recommend(self) -> str:
        """The model that suits this machine; it is chosen where none was."""
        best = recommended(self.facts).name
        if "model" not in self.run.given():
            self.choose(best)
        return best

    def change(self, **changes: Any) -> Run:
        """Some settings; None takes one back to its default. Raises `LorakitError` and changes nothing when refused."""
        given = {**self.run.given(), **changes}
        run = Run(**{k: v for k, v in given.items() if v is not None or k not in changes})
        return self._take(run)

    def _take(self, run: Run) -> Run:
        """These settings from now on, once nothing in them leaves the project's folders."""
        if Path(run.output_dir).resolve() != self.home:
            raise LorakitError(
                f"output_dir={run.output_dir!r}: this studio keeps its runs in {self.home}; leave it"
            )
        named = {name: getattr(run, name) for name in PATHS if getattr(run, name)}
        confined = {name: self._confined(name, value) for name, value in named.items()}
        if confined != named:
            run = run.with_(**confined)
        self._inside(run.format)
        self.run = run
        with atomic_write(self.folder / "settings.yaml") as part:
            run.write(part)
        return run

    def _confined(self, name: str, value: Any) -> Any:
        """The value of a setting with each path in it resolved. Raises `LorakitError` for one that leads out."""
        if isinstance(value, dict):
            return {self._confined(name, path): share for path, share in value.items()}
        if isinstance(value, list):
            return [self._confined(name, path) for path in value]
        if uploads.elsewhere(name, value):
            return value
        found = value if name == "model" else sources.find(value) or value
        return str(uploads.inside(found, self.roots))

    def _inside(self, value: Any) -> None:
        """Refuses a path out of the project's folders in the options of a format."""
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                self._inside(one)
        elif isinstance(value, str) and (os.path.lexists(value) or os.sep in value):
            uploads.inside(value, self.roots)

    def _moved(self) -> None:
        """Uploads of before, which lay in the folder of the run `studio`."""
        former = self.home / "studio"
        if (former / "uploads").is_dir() and not self.folder.exists():
            self.folder.mkdir()
            (former / "uploads").rename(self.folder / "uploads")
            if (kept := former / "settings.yaml").is_file():
                text = kept.read_text(encoding="utf-8").replace(str(former), str(self.folder))
                (self.folder / "settings.yaml").write_text(text, encoding="utf-8")
                kept.unlink()

    def _restore(self) -> None:
        """The settings of last time, also of a page that was closed."""
        kept = self.folder / "settings.yaml"
        if kept.is_file():
            try:
                self._take(Run.read(kept))
            except LorakitError:
                remove(kept)

    # Data

    def incoming(self, name: str, size: int) -> uploads.Incoming:
        """An upload that comes in pieces, for `keep`."""
        return uploads.Incoming(name, self.folder / "uploads", size)

    def keep(self, incoming: uploads.Incoming) -> str:
        """An upload whose pieces are all there becomes the data of the run; what was done to read it, in words."""
        with contextlib.closing(incoming):
            file, done = usable(incoming.keep())
        self.use(str(file))
        return done

    def use(self, data: str) -> Run:
        """Another file, of which nothing is known yet."""
        return self.change(data=data, columns=None, format=None, task=None, name=self._free(data))

    def _free(self, data: str) -> str:
        """A name that no run has, from the data's."""
        stem = re.sub(r"[^\w\- ]", "-", Path(data).name.split(".")[0]).strip("- ") or "run"
        taken = set(self.names())
        return next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 10**6))) if n not in taken)

    @property
    def example(self) -> bool:
        """Whether the data are an example of lorakit's own."""
        file = sources.find(self.run.data) if isinstance(self.run.data, str) else None
        return file is not None and file.resolve().parent == self.examples.resolve()

    def files(self) -> list[str]:
        """Data files to choose from."""
        data = [root / "data" for root in self.roots]
        return uploads.known([self.folder / "uploads", *data, *map(Path, uploads.INPUTS)])

    def head(self) -> tuple[list[str], list[list[str]]]:
        """(columns, cells) of the first rows of the data, as they stand in the file."""
        rows = sources.of_run(self.run.data, format=self.run.format)["train"].read()
        return uploads.first_rows([row for row in islice(rows, 200) if isinstance(row, Example)])

    def check(self) -> Checked:
        """What `lorakit check` finds."""
        return check(self.run)

    def plan(self) -> Plan:
        """What the next run needs. Raises `LorakitError` when it cannot fit, naming settings that would."""
        self.recommend()
        found = setup(self.run, self.facts)
        found.refuse()
        warnings = unusual(self.run, len(found.prepared.rows["train"]))
        need = found.peak_memory["total"]
        return Plan(need, self.facts.device_memory, found.updates, found.seconds()[0], warnings)

    @cached_property
    def facts(self) -> Facts:
        """Of this machine."""
        return hardware.facts(str(self.home))

    def leave_out(self) -> Run:
        """A clean copy without the rows that cannot be used, as the data from now on."""
        folder = self.folder / "uploads" / f"clean-{time.strftime('%Y%m%d-%H%M%S')}"
        folder.mkdir(parents=True)
        clean, _ = fix(self.run, folder)
        return self.change(data=str(clean), format=None)

    # Runs

    def start(self) -> Job:
        """Trains in a process of its own, after those that wait already. Raises `LorakitError` when it cannot fit."""
        self.recommend()
        setup(self.run, self.facts).refuse()
        return launch(self.run, queued=True)

    def resume(self, name: str) -> Job:
        """Goes on with a run where its checkpoint stands."""
        asked = self.job(name).folder / "asked.json"
        if not asked.is_file():
            raise LorakitError(
                f"{name}: does not say how it was started; start it from where it was"
            )
        return launch(Run(**json.loads(asked.read_text(encoding="utf-8"))), queued=True)

    def job(self, name: str) -> Job:
        """A run of this folder by its name, which is never a path."""
        if name not in self.names():
            raise LorakitError(f"{name}: there is no such run in {self.home}")
        return Job(self.home / name)

    def names(self) -> list[str]:
        """The runs, the latest first."""
        found = (
            [
                p
                for p in self.home.iterdir()
                if p.is_dir()
                and not p.is_symlink()
                and ((p / "record.json").is_file() or (p / "asked.json").is_file())
            ]
            if self.home.is_dir()
            else []
        )
        return [p.name for p in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)]

    def jobs(self) -> list[dict[str, Any]]:
        """A line per run. One whose files are damaged is shown as that, and hides no other."""
        return [self._line(name) for name in self.names()]

    def _line(self, name: str) -> dict[str, Any]:
        job = Job(self.home / name)
        try:
            record = job.folder.record
            status: str = job.status
            if status == "queued" and not job.queued:
                status = "not started"
            return {
                "name": name,
                "status": status,
                "model": record.get("model", ""),
                "score": _score(job.folder.scores),
                "error": str(record.get("error") or ""),
            }
        except LorakitError as error:
            return {
                "name": name,
                "status": "damaged",
                "model": "",
                "score": "",
                "error": str(error),
            }

    def delete(self, name: str) -> None:
        """A run's folder, whole. Raises `LorakitError` while it is going."""
        job = self.job(name)
        if job.running:
            raise LorakitError(f"{name}: is {job.status}; stop it first")
        gone = job.folder.path.with_name(f".{name}.deleted{os.getpid()}")
        job.folder.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def compare(self, names: Sequence[str]) -> tuple[str, bytes]:
        """(words, PNG) of runs side by side; of one alone its curve."""
        import io

        from lorakit.results.compare import compare, figure

        folders = [self.job(name).folder.path for name in names]
        if not folders:
            raise LorakitError("choose two runs or more")
        logs = [read_log(folder) for folder in folders]
        figure(logs, list(names)).savefig(out := io.BytesIO(), format="png", dpi=100)
        words = str(compare(*folders, unscored=True)) if len(folders) > 1 else ""
        return words, out.getvalue()

    def asked(self, name: str) -> list[dict[str, Any]]:
        """The test rows of a run with its answers."""
        return read_lines(self.job(name).folder / "answers.jsonl", "prompt", "before", "after")

    def samples(self, name: str) -> list[dict[str, Any]]:
        """Answers to the same prompts as training went on, where the run keeps them; else before and after."""
        folder = self.job(name).folder
        found = read_lines(folder / "samples.jsonl", "update", "prompt", "answer")
        return found or [
            {"update": when, "prompt": row["prompt"], "answer": row[when]}
            for row in self.asked(name)[:3]
            for when in ("before", "after")
        ]

    # What comes after

    def talk(self, name: str) -> Talk:
        """The chat with a run; the one with another run gives its memory back."""
        folder = self.job(name).folder.path
        if self._talk and self._talk.folder != folder:
            self._talk.close()
            self._talk = None
        self._talk = self._talk or Talk(folder)
        return self._talk

    def correct(self, name: str, question: str, answer: str) -> Path:
        """Keeps a corrected answer as a training row; the file that gathers those of this run."""
        self.job(name)
        path = self.folder / "uploads" / f"{name}-corrections.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"prompt": question, "completion": answer}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return path

    def folded(self, name: str) -> bool:
        """Whether a run has folds, so that models which never saw its rows can judge them."""
        return (self.job(name).folder / "folds").is_dir()

    def suspects(self, name: str) -> Path:
        """The folder of a run whose suspicious answers are ranked; they are now where they were not."""
        folder = self.job(name).folder
        if not table_path(folder).is_file():
            answers_of(SUSPICIOUS, {"run": str(folder.path)})
        return folder.path

    def clone(self, name: str) -> Run:
        """The settings of a run, as it was asked for, for the next one under another name."""
        asked = self.job(name).folder / "asked.json"
        if not asked.is_file():
            raise LorakitError("does not say how it was started", where=name)
        run = Run(**json.loads(asked.read_text(encoding="utf-8")))
        self._take(run.with_(name=self._free(name)))
        return self.run

    def push(self, path: Path, repository: str, token: str) -> str:
        """Uploads an export to a private repository of the hub; the page of it."""
        (page,) = answers_of(PUSH, {"folder": str(path), "repository": repository, "token": token})
        return page

    def targets(self) -> list[dict[str, Any]]:
        """What a run can be exported to: name, a title for people, and its types."""
        return [
            {
                "name": name,
                "title": f"{name}: {str(module.__doc__).splitlines()[0].split(':')[0].rstrip('.')}",
                "types": list(_types(module)),
            }
            for name, module in registry.modules("export").items()
        ]

    def export(self, name: str, target: str, type: str | None = None) -> Path:
        """Writes and verifies an export; the folder or file that it made, in the run's folder."""
        names = [known["name"] for known in self.targets()]
        if target not in names:
            raise LorakitError(f"there is no export '{target}'; there are {', '.join(names)}")
        asked = {"run": str(self.job(name).folder.path), "target": target, "type": type}
        (path,) = answers_of(EXPORT, asked)
        return uploads.inside(path, [self.home])

    def packed(self, path: Path) -> Path:
        """One file to download: the file itself, or a ZIP of the folder beside it."""
        path = uploads.inside(path, [self.home])
        if path.is_file():
            return path
        target = path.with_name(f"{path.name}.zip")
        with atomic_write(target) as part:
            shutil.make_archive(str(part), "zip", root_dir=path)
            os.replace(f"{part}.zip", part)
        return target


def _types(module: ModuleType) -> Sequence[str]:
    return module.TARGET.types if hasattr(module, "TARGET") else module.TYPES


def _score(scores: dict[str, dict]) -> str:
    """`exact match 0 → 0.92`, where there are scores."""
    name = primary(scores)
    return change(name, scores[name]) if name else ""

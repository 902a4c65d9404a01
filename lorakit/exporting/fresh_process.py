"""What was written, asked in a process that has loaded nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.common.files import temporary_folder
from lorakit.exporting import measure, target
from lorakit.exporting.measure import Compared, Progress, Said
from lorakit.exporting.proof import Proof, proof_of
from lorakit.exporting.reference import reference
from lorakit.exporting.source import source
from lorakit.machine.hardware import child_environment

PROGRESS, ANSWER = "progress ", "answer "  # how lines of the child's output begin


@dataclass(frozen=True)
class Job:
    """What the process is given.

    Attributes:
        target: name of the target; `type` one of its precisions; `folder` what was written.
        reference: folder of the tuned model's distributions; empty where the process asks the tuned model itself.
        run, options: of the export, for a process that opens the run itself.
    """

    target: str
    type: str
    folder: str
    run: str
    reference: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def ask_in_fresh_process(
    job: Job, proof: Proof | None, progress: Progress
) -> tuple[Said, Compared]:
    """(the tuned model's sayings, the export's). Raises `LorakitError` with the reason when the process fails."""
    with temporary_folder() as scratch:
        folder = Path(scratch)
        (folder / "job.json").write_text(json.dumps(asdict(job), default=str), encoding="utf-8")
        if proof is not None:
            proof.write(folder)
        with open(folder / "stderr", "w+", encoding="utf-8", errors="replace") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", __name__, scratch],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=child_environment(),
            )
            with child:
                answer = _follow(child, progress)
            if child.returncode or answer is None:
                errors.seek(0)
                raise failed(job, child.returncode, errors.read())
    return Said(**answer["tuned"]), Compared(**answer["export"])


def _follow(child: subprocess.Popen, progress: Progress) -> dict[str, Any] | None:
    answer = None
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if line.startswith(PROGRESS):
                what, done, of = json.loads(line.removeprefix(PROGRESS))
                progress(what, done, of)
            elif line.startswith(ANSWER):
                answer = json.loads(line.removeprefix(ANSWER))
    except BaseException:
        child.kill()
        raise
    return answer


def failed(job: Job, code: int, errors: str) -> LorakitError:
    """Why a process ended without an answer."""
    what = f"{job.target} {job.type}"
    if code < 0:
        name = signal.Signals(-code).name
        cure = (
            "memory ran out, most likely: close other programs, or take a type with fewer bits"
            if -code == signal.SIGKILL
            else "start the export again"
        )
        return LorakitError(
            f"the process that reads what was written was killed ({name})", where=what, cure=cure
        )
    last = errors.strip().splitlines()[-1:] or [f"it ended with code {code}"]
    return LorakitError(
        f"what was written could not be run in a fresh process: {last[0]}", where=what
    )


def ask(job: Job, proof: Proof | None, progress: Progress) -> tuple[Said, Compared]:
    """The same in this process."""
    wanted = target.named(job.target)
    if proof is None:
        opened = source(job.run, **job.options)
        proof = proof_of(opened)
        found = reference(opened, proof, progress=progress)
        tuned, folder = found.said, found.folder
    else:
        folder = Path(job.reference)
        tuned = measure.read(folder / "said.json")
    runtime = wanted.load(Path(job.folder), proof)
    export = measure.ask_export(runtime, proof, tuned, folder, progress)
    export.facts = wanted.facts(runtime, proof)
    return tuned, export


def _main(scratch: str) -> None:
    folder = Path(scratch)
    job = Job(**json.loads((folder / "job.json").read_text(encoding="utf-8")))
    proof = Proof.read(folder) if (folder / "proof.json").is_file() else None

    def progress(what: str, done: int, of: int) -> None:
        print(PROGRESS + json.dumps([what, done, of]), flush=True)

    tuned, export = ask(job, proof, progress)
    print(
        "\n" + ANSWER + json.dumps({"tuned": asdict(tuned), "export": asdict(export)}), flush=True
    )


if __name__ == "__main__":
    try:
        _main(sys.argv[1])
    except LorakitError as error:
        sys.exit(str(error))

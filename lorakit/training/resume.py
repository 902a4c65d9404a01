"""Resuming an interrupted run: whether it can, what forbids it, and the state it goes on from."""

from __future__ import annotations

from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.engines.protocol import Engine
from lorakit.machine.distributed import World
from lorakit.models import identity
from lorakit.models.recorded import verify_saved
from lorakit.planning.setup import Setup
from lorakit.run import Run
from lorakit.runs.folder import RunFolder, versions
from lorakit.runs.status import Status
from lorakit.training import checkpoint
from lorakit.training.callbacks import Best
from lorakit.training.loop import State

READERS = ("transformers", "tokenizers")  # another version may write the same tokenizer otherwise


def can_resume(folder: RunFolder) -> bool:
    """Whether there is a checkpoint."""
    return folder.last_checkpoint.exists()


def differences(run: Run, folder: RunFolder) -> list[str]:
    """Settings that forbid resuming what is in the folder. Reads nothing but the folder's own notes."""
    known = folder.record
    if not can_resume(folder) and known["status"] != Status.DONE:
        return []
    if not {"settings", "data", "updates_planned"} <= known.keys():
        raise LorakitError(
            f"{folder.path} holds a checkpoint, and record.json does not say of which settings; "
            "give this run another name, or delete the folder"
        )
    differing = run.differences(Run(**known["settings"]))
    if folder.settings.exists():  # what `auto` became is no difference
        resolved = run.differences(Run.read(folder.settings))
        differing = {k: v for k, v in differing.items() if k in resolved}
    if "model" in differing and _same_base(run.model, known):
        del differing["model"]
    return [f"{k}: {theirs!r} there, {mine!r} now" for k, (mine, theirs) in differing.items()]


def _same_base(model: str, known: dict[str, Any]) -> bool:
    """Whether a base that lies elsewhere now has the content of the one that the record names."""
    base = known.get("base") or {}
    recorded = identity.Base(base.get("weights"), base.get("config"))
    try:
        here = identity.base(model)
    except LorakitError:  # no such model: another one in any case
        return False
    return bool(recorded.weights and here.weights) and not here.differences(recorded)


def preflight(run: Run) -> None:
    """Raises `LorakitError` when the folder of a run holds another one. Imports nothing and reads only its notes."""
    folder = RunFolder(run.folder)
    if not folder.busy:  # else the lock says so
        refuse(folder, differences(run, folder))


def changed_inputs(plan: Setup, folder: RunFolder) -> list[str]:
    """Data and base weights that are no longer those the run began with."""
    known, model = folder.record, plan.asked.model
    changed = []
    if known["data"]["sha256"] != plan.prepared.report.sha256:
        changed.append(f"the content of the data: {known['data']['file']} has changed since")
    base = known.get("base") or {}
    recorded = identity.Base(base.get("weights") or known.get("base_sha256"), base.get("config"))
    differing = identity.base(model).differences(recorded) if recorded.weights != model else []
    same = all(known.get("versions", {}).get(n) == v for n, v in versions().items() if n in READERS)
    if same and base.get("reader") not in (None, plan.base.reader_hash):
        differing.append("tokenizer or chat template")
    changed += [f"the {part} of the base: {model} has changed since" for part in differing]
    return changed


def refuse(folder: RunFolder, differing: list[str]) -> None:
    """Raises `LorakitError` when the folder holds another run."""
    if differing:
        raise LorakitError(
            f"{folder.path} holds a run with other settings ({'; '.join(differing)}). "
            f"Give this run another name, restore the settings, or delete the folder"
        )


def finished(plan: Setup, folder: RunFolder) -> bool:
    """Whether there is nothing left to do.

    Raises `LorakitError` when the folder holds another run, and when what a finished one saved is not as it was.
    """
    known = folder.record
    if not can_resume(folder) and known["status"] != Status.DONE:
        return False
    refuse(folder, differences(plan.asked, folder) + changed_inputs(plan, folder))
    done = known["status"] == Status.DONE and plan.updates <= known["updates_planned"]
    if done:
        verify_saved(folder, folder.saved(plan.asked.method))
    return done


def load_state(engine: Engine, folder: RunFolder, world: World) -> tuple[State, Best]:
    """Restores the engine from the last checkpoint, where there is one, and drops later lines of the history."""
    state, best = State(), Best()
    saved = world.broadcast_from_rank0(
        lambda: checkpoint.read(folder.last_checkpoint) if can_resume(folder) else None
    )
    if saved:
        tensors, meta = saved
        engine.restore(tensors)
        state, best = State(**meta["state"]), Best(**meta["best"])
    folder.rewind(state.update)
    return state, best

"""Settings found by the validation loss: Optuna proposes them, a trial trains with them, a poor one is ended early.

No trial reads a test row: those are for the one run that the winner's settings are given to afterwards. `study.db`
(SQLite) in the search's folder knows every trial, and started again a search goes on with what is missing, a trial that
was cut from its checkpoint.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.common.files import remove
from lorakit.machine.distributed import ALONE
from lorakit.planning.setup import setup, updates_of
from lorakit.run import Run
from lorakit.runs.folder import RunFolder, slug, write_json
from lorakit.tasks.dataset import SETTINGS, prepare
from lorakit.training.session import Session

# Under other rows, or with another tokenizer, a validation loss is another quantity.
FIXED = {*SETTINGS, "model", "data", "validation_data", "test_data", "format", "name", "output_dir"}
WARM = 0.25  # share of a trial's updates before which it is not judged


def tried(run: Run, see: Callable[[int, float], None] = lambda update, loss: None) -> float:
    """Trains in this process and returns the lowest validation loss; no test row is read, no model kept.

    `see` is told every validation and may raise to end the trial. One that was cut goes on from its checkpoint.
    """
    plan = setup(run.with_(processes=1, max_minutes=None), processes=1)
    plan.refuse()
    run, prepared = plan.asked, plan.prepared
    if "validation" not in prepared.rows:
        raise LorakitError(
            "settings are judged by validation rows, and there are none: raise validation_fraction, or "
            "name validation_data"
        )
    sets = {name: prepared.rows[name] for name in ("train", "validation")}
    asked = {"settings": run.given(), "data": prepared.report.sha256}
    folder = RunFolder(run.folder)
    with folder.locked():
        if _known(folder) != json.loads(json.dumps(asked)):
            remove(folder / "checkpoint")
            write_json(folder / "trial.json", asked)
        session = Session.load(plan, folder, ALONE, sets, prepared.meta)
        try:
            session.resume()
            for line in folder.history()[1]:
                see(line["update"], line["validation_loss"])
            if session.train(report=see):
                raise KeyboardInterrupt  # asked to stop: the checkpoint stands
        finally:
            session.engine.close()
    return session.best.loss


def _known(folder: RunFolder) -> Any:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / "trial.json").read_text(encoding="utf-8"))
    return None


def search(
    run: Run,
    space: Mapping[str, Any],
    trials: int = 20,
    *,
    startup: int = 5,
    say: Callable[[str], Any] = print,
) -> Any:
    """An Optuna study of so many trials in `run.folder`; `settings_of` its `best_trial` are the winner's.

    `space` maps a setting to what is tried: a list of values, a pair `(low, high)` searched on a logarithmic scale, or
    names of values (`{"attention": ["q_proj", "v_proj"], "all": "auto"}`). The run's own settings are the first trial.
    After `startup` trials one that is worse than the median of the others at the same update is ended.
    Raises `LorakitError` for what cannot be searched, and when no trial came to its end.
    """
    import optuna

    _refuse(run, space)
    folder = RunFolder(run.folder)
    with folder.locked(), _quiet(optuna):
        study = _study(optuna, run, space, startup, folder)
        while len(_ended(study)) < trials:
            study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=startup, seed=run.seed + len(study.trials)
            )
            say(_one(optuna, study, run, space))
    if not _losses(study):
        words = next(
            (t.user_attrs["error"] for t in study.trials if "error" in t.user_attrs),
            "none was started",
        )
        raise LorakitError(f"{folder.path}: no trial came to its end; the first: {words}")
    return study


def settings_of(trial: Any, space: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that a trial stands for."""
    return {
        name: space[name][value] if isinstance(space[name], Mapping) else value
        for name, value in trial.params.items()
    }


def curves(study: Any) -> list[tuple[str, Sequence[int], Sequence[float]]]:
    """(how it ended, updates, validation losses) of every trial."""
    return [
        (t.state.name.lower(), *zip(*sorted(t.intermediate_values.items())))
        for t in study.trials
        if t.intermediate_values
    ]


def importances(study: Any, seed: int = 0) -> dict[str, float]:
    """Share of the losses' variance that each setting explains (fANOVA, Hutter et al. 2014), the largest first.

    {} with fewer than four finished trials, or when all are alike.
    """
    import optuna

    done = _losses(study)
    if len(done) < 4 or len(set(done)) == 1:
        return {}
    return dict(
        optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=seed)
        )
    )


def _losses(study: Any) -> list[float]:
    return [t.value for t in study.trials if t.state.name == "COMPLETE"]


def _refuse(run: Run, space: Mapping[str, Any]) -> None:
    """Raises `LorakitError` for a space that makes no sense."""
    if not space:
        raise LorakitError(
            "search: the space is empty; name a setting and what to try, e.g. rank: [4, 16]"
        )
    if run.learning_rate == "auto":
        raise LorakitError(
            "a search needs a number as learning_rate, not auto",
            setting="learning_rate",
            value="auto",
            cure="set the rate of the first trial, and search others: learning_rate=(1e-4, 1e-2)",
        )
    for name, values in space.items():
        if name in FIXED:
            raise LorakitError(
                f"search: {name} cannot be searched: validation losses could not be compared"
            )
        if isinstance(values, tuple):
            if len(values) != 2 or not 0 < values[0] < values[1]:
                raise LorakitError(
                    f"search: {name}={values!r} is no pair (low, high) of numbers above zero"
                )
        elif not isinstance(values, (list, Mapping)) or not values:
            raise LorakitError(
                f"search: {name}={values!r}: give a list of values, a pair (low, high), or named values"
            )
        for value in values.values() if isinstance(values, Mapping) else values:
            run.with_(**{name: value})


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna's own lines aside: each trial has one here."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _study(optuna: Any, run: Run, space: Mapping[str, Any], startup: int, folder: RunFolder) -> Any:
    """The study of this folder. Trials that were cut wait in it to be taken up again."""
    prepared = prepare(run)
    updates = updates_of(run, prepared)
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / 'study.db').absolute()}",
        study_name="search",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=startup, n_warmup_steps=int(WARM * updates)
        ),
    )
    asked = json.loads(
        json.dumps({"settings": run.given(), "space": space, "data": prepared.report.sha256})
    )
    known = study.user_attrs.get("asked")
    if known is None:
        study.set_user_attr("asked", asked)
        study.enqueue_trial(_own(run, space))
    elif known != asked:
        differing = [
            n
            for n in {**known["settings"], **asked["settings"]}
            if known["settings"].get(n) != asked["settings"].get(n)
        ]
        differing += [n for n in ("space", "data") if known[n] != asked[n]]
        raise LorakitError(
            f"{folder.path} holds a search with other settings ({', '.join(differing)}). Give this one "
            "another name, restore the settings, or delete the folder"
        )
    for trial in study.trials:
        if trial.state.name == "RUNNING":
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
    return study


def _ended(study: Any) -> list[Any]:
    """Those that count: not the ones that were cut, which have no value and no error."""
    return [
        t
        for t in study.trials
        if t.state.is_finished() and (t.state.name != "FAIL" or "error" in t.user_attrs)
    ]


def _own(run: Run, space: Mapping[str, Any]) -> dict[str, Any]:
    """The run's own settings as far as they lie in the space."""
    found: dict[str, Any] = {}
    for name, values in space.items():
        own = getattr(run, name)
        if isinstance(values, Mapping):
            found |= (
                {name: next(key for key in values if values[key] == own)}
                if own in values.values()
                else {}
            )
        elif own in values if isinstance(values, list) else values[0] <= own <= values[1]:
            found[name] = own
    return found


def _one(optuna: Any, study: Any, run: Run, space: Mapping[str, Any]) -> str:
    """One trial from the proposal to its end, and what to say of it."""
    trial = study.ask()
    for name, values in space.items():
        if isinstance(values, tuple):
            kind = (
                trial.suggest_int
                if all(isinstance(v, int) for v in values)
                else trial.suggest_float
            )
            kind(name, *values, log=True)
        else:
            trial.suggest_categorical(name, list(values))

    def see(update: int, loss: float) -> None:
        trial.report(loss, update)
        if trial.should_prune():
            raise optuna.TrialPruned(f"ended at update {update}")

    mine = run.with_(
        **settings_of(trial, space), name=slug(trial.params), output_dir=run.folder / "trials"
    )
    try:
        loss = tried(mine, see)
        study.tell(trial, loss)
        said = f"{loss:.4f}"
    except optuna.TrialPruned as end:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        said = str(end)
    except LorakitError as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        said = f"failed: {error}"
    remove(mine.folder / "checkpoint")
    words = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in trial.params.items()
    )
    return f"trial {trial.number}: {said} ({words})"

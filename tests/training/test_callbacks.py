"""Each callback of the training loop alone."""

import os
import signal

import pytest

from lorakit.machine.distributed import ALONE, World
from lorakit.results import evaluate
from lorakit.runs.folder import ReadOnlyRunFolder, RunFolder, read_lines
from lorakit.tasks import objectives
from lorakit.training import checkpoint
from lorakit.training.callbacks import (
    Best,
    Callback,
    Callbacks,
    Checkpointing,
    EarlyStopping,
    History,
    Stop,
    StopRequest,
    TimeLimit,
    TimePrediction,
    Validation,
)
from lorakit.training.loop import State


class Engine:
    """Weights are its number of asked states."""

    objective = objectives.get("next_token")

    def __init__(self):
        self.asked = 0

    def weights(self):
        import numpy as np

        self.asked += 1
        return {"w": np.array([self.asked], np.float32)}

    state = weights


@pytest.fixture
def folder(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    return RunFolder(tmp_path)


def line(update, **more):
    return {"update": update, "loss": 1.0, "seconds": 2.0} | more


def validation(folder, best, engine=None, report=lambda update, loss: None):
    return Validation(
        engine or Engine(),
        rows=None,
        folder=folder,
        write=History(folder).write,
        best=best,
        every=2,
        updates=5,
        max_rows=8,
        max_tokens=64,
        report=report,
    )


def test_history_writes_lines_and_tells_trackers(folder):
    told = []

    class Trackers:
        log = staticmethod(told.append)
        close = staticmethod(lambda: told.append("closed"))

    history = History(folder, Trackers())
    history.after_update(State(update=1), line(1))
    history.close()
    assert folder.history()[0] == [line(1)] and told == [line(1), "closed"]


def test_validation_at_its_updates_and_after_the_last(folder, monkeypatch):
    losses, best, engine, told = iter([3.0, 2.0, 2.5]), Best(), Engine(), []
    monkeypatch.setattr(evaluate, "mean_loss", lambda *_, **__: next(losses))
    one = validation(folder, best, engine, report=lambda *seen: told.append(seen))
    for update in range(1, 6):
        assert one.after_update(State(update=update), line(update)) is None
    assert told == [(2, 3.0), (4, 2.0), (5, 2.5)]
    assert [v["validation_loss"] for v in folder.history()[1]] == [3.0, 2.0, 2.5]
    assert (best.update, best.loss, best.worse) == (4, 2.0, 1)
    tensors, meta = checkpoint.read(folder.best_checkpoint)
    assert (tensors["w"].tolist(), meta) == ([2.0], {"update": 4})


def test_only_rank_0_writes_checkpoints_but_all_take_part(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "mean_loss", lambda *_, **__: 1.0)
    other, engine = ReadOnlyRunFolder(tmp_path / "other"), Engine()
    validation(other, Best(), engine).after_update(State(update=2), line(2))
    Checkpointing(engine, other, Best(), every=1).agreed(State(update=2), ending=False)
    assert engine.asked == 2 and not other.path.exists()


def test_early_stopping_counts_validations_without_a_better_loss():
    early = EarlyStopping(best := Best(worse=1), patience=2)
    assert early.after_update(State(), line(1)) is None
    best.worse = 2
    assert early.after_update(State(), line(2)) == Stop(
        "the validation loss stopped falling", complete=True
    )
    assert not EarlyStopping(best, None).reached


def test_time_limit():
    now = iter([0.0, 59.0, 61.0])
    limit = TimeLimit(1, clock=lambda: next(now))
    assert limit.after_update(State(), line(1)) is None
    assert limit.after_update(State(), line(2)) == Stop("max_minutes=1 is over")
    assert TimeLimit(None).after_update(State(), line(1)) is None


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request_to_stop(kind):
    request = StopRequest()
    before = signal.getsignal(kind)
    with request.listening():
        assert request.after_update(State(), line(1)) is None
        os.kill(os.getpid(), kind)
        assert request.after_update(State(), line(1)) == Stop("stopped on request")
    assert signal.getsignal(kind) is before


def test_a_second_interrupt_ends_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest().listening():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_checkpoints_at_their_updates_and_at_the_end(folder):
    saving = Checkpointing(Engine(), folder, Best(update=3, loss=0.5), every=4)
    for update in range(1, 7):
        saving.agreed(State(update=update, target_tokens=10 * update), ending=update == 6)
        if update < 4:
            assert not folder.last_checkpoint.exists()
    tensors, meta = checkpoint.read(folder.last_checkpoint)
    assert tensors["w"].tolist() == [2.0]  # the second: after update 6
    assert meta["state"]["update"] == 6 and meta["best"] == {"update": 3, "loss": 0.5, "worse": 0}


def test_time_is_predicted_after_five_updates(folder):
    class Batches:
        total_tokens = 1000
        tokens = staticmethod(lambda update: 100)

    predicted = TimePrediction(folder, Batches())
    for update in range(1, 8):
        predicted.after_update(State(update=update), line(update))
        assert ("seconds_predicted" in folder.record) == (update >= 5)
    assert folder.record["seconds_predicted"] == pytest.approx(20.0)


class Asks(Callback):
    def __init__(self, stop):
        self.stop, self.seen = stop, []

    def after_update(self, state, line):
        return self.stop

    def agreed(self, state, ending):
        self.seen.append(ending)

    def close(self):
        self.seen.append("closed")


def test_training_ends_for_all_when_one_of_any_process_asks():
    class Others(World):
        def gather(self, value):
            return [value, [Stop("theirs")]]

    mine = Asks(None)
    alone, several = (Callbacks([mine], 9, world) for world in (ALONE, Others(0, 2)))
    assert not alone.after_update(State(update=1), line(1)) and alone.stops == []
    assert several.after_update(State(update=1), line(1)) and several.stops == [Stop("theirs")]
    assert Callbacks([mine], 9, ALONE).after_update(State(update=9), line(9))
    several.close()
    assert mine.seen == [False, True, True, "closed"]


def test_samples_file_is_rewound_with_the_history(folder):
    for update in (1, 2, 3):
        folder.append(line(update))
        folder.append({"update": update, "prompt": "?", "answer": "!"}, "samples.jsonl")
    folder.rewind(2)
    assert [x["update"] for x in folder.history()[0]] == [1, 2]
    assert [x["update"] for x in read_lines(folder / "samples.jsonl")] == [1, 2]

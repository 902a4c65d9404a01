"""Logs of other tools, and runs laid beside them. What a comparison of runs says of scores: test_finetune.py."""

import json
import shutil

import pytest

import lorakit
from lorakit.cli import main
from lorakit.common.errors import LorakitError
from lorakit.results import logs
from lorakit.results.compare import figure, said
from lorakit.tasks import rows

STATE = {
    "global_step": 40,
    "logging_steps": 10,
    "num_train_epochs": 2,
    "max_steps": 40,
    "train_batch_size": 4,
    "log_history": [
        {"step": 10, "loss": 3.0, "learning_rate": 1e-4, "num_input_tokens_seen": 100},
        {"step": 20, "loss": 2.5, "num_input_tokens_seen": 210},
        {"step": 20, "eval_loss": 2.6, "eval_runtime": 1.0},
        {"step": 20, "eval_other_loss": 4.0},
        {"step": 30, "loss": 2.0, "num_input_tokens_seen": 300},
        {"step": 40, "eval_loss": 2.7},
        {"step": 40, "train_runtime": 9.0, "train_loss": 2.5},
    ],
}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_state_of_hugging_face(tmp_path):
    log = logs.read(put(tmp_path / "llama/trainer_state.json", STATE))
    assert log.name == "llama" and log.kind == "trainer_state"
    assert log.updates == [
        {"update": 10, "loss": 3.0, "tokens": 100.0},
        {"update": 20, "loss": 2.5, "tokens": 210.0},
        {"update": 30, "loss": 2.0, "tokens": 300.0},
    ]
    assert log.validations == {"validation": [(20, 2.6), (40, 2.7)], "other": [(20, 4.0)]}
    assert log.settings == {"epochs": 2, "max_steps": 40, "per_device_train_batch_size": 4}
    assert log.notes == [
        "its tokens are those of the input, not of the targets",
        "it says a training loss every 10 updates",
    ]
    assert (
        log.lowest == (20, 2.6)
        and log.place("tokens", 25) == 210
        and log.place("seconds", 25) is None
    )
    assert log.smoothed() == [3.0, 2.5, 2.0]  # means already


def test_the_latest_checkpoint_of_a_folder(tmp_path):
    for step in (5, 40, 9):
        put(
            tmp_path / f"out/checkpoint-{step}/trainer_state.json",
            {"log_history": [{"step": step, "loss": 1.0}]},
        )
    log = logs.read(tmp_path / "out")
    assert (log.name, log.updates) == ("out", [{"update": 40, "loss": 1.0}])


TABLES = [  # content, updates, validations, what is counted
    (
        "Step,Training Loss,Validation Loss\n10,2.5,No log\n20,1.5,1.75\n",
        [(10, 2.5), (20, 1.5)],
        [(20, 1.75)],
        "update",
    ),
    (
        "Epoch,Training Loss,Validation Loss\n1,No log,0.5\n2,0.25,0.4\n",
        [(2, 0.25)],
        [(1, 0.5), (2, 0.4)],
        "epoch",
    ),
    (
        '"Step","run 7 - train/loss","run 7 - train/loss__MIN"\n1,2.0,2.0\n',
        [(1, 2.0)],
        [],
        "update",
    ),
    ("epoch,step,train_loss,val_loss\n0,9,1.5,\n0,9,,1.25\n", [(9, 1.5)], [(9, 1.25)], "update"),
    (",step,loss\n0,1,2.0\n1,2,nan\n", [(1, 2.0)], [], "update"),
    ("step;loss\n1;2.5\n,3\n", [(1, 2.5)], [], "update"),
]


@pytest.mark.parametrize(("content", "updates", "validations", "counted"), TABLES)
def test_tables(tmp_path, content, updates, validations, counted):
    log = logs.read(put(tmp_path / "curve.csv", content))
    assert [(u["update"], u["loss"]) for u in log.updates] == updates
    assert log.validations.get("validation", []) == validations
    assert (log.counted, log.name) == (counted, "curve")


def events(folder, points, **more):
    """Event files as `torch.utils.tensorboard` writes them, one file per call."""
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(str(folder), **more)
    for step, loss in points:
        writer.add_scalar("train/loss", loss, step, walltime=1000 + 2 * step)
        writer.add_scalar("eval/loss", loss + 1, step, walltime=1000 + 2 * step)
        writer.add_scalar("train/grad_norm", 1, step, walltime=1000 + 2 * step)
    writer.close()
    return folder


def test_event_files(tmp_path):
    pytest.importorskip("tensorboard")
    log = logs.read(events(tmp_path / "llama/runs/Sep19", [(1, 3.0), (2, 2.0)]))
    assert log.name == "Sep19"
    assert log.updates == [
        {"update": 1, "loss": 3.0, "seconds": 0.0},
        {"update": 2, "loss": 2.0, "seconds": 2.0},
    ]
    assert log.validations == {"validation": [(1, 4.0), (2, 3.0)]}


def test_a_training_that_went_on_is_one_log_and_two_trainings_are_two(tmp_path):
    pytest.importorskip("tensorboard")
    events(tmp_path / "one", [(1, 3.0), (2, 2.0), (3, 9.0)])
    events(tmp_path / "one", [(3, 1.0), (4, 0.5)], filename_suffix=".again")
    assert [(u["update"], u["loss"]) for u in logs.read(tmp_path / "one").updates] == [
        (1, 3.0),
        (2, 2.0),
        (3, 1.0),
        (4, 0.5),
    ]
    events(tmp_path / "one/other", [(1, 3.0)])
    with pytest.raises(LorakitError, match=r"one: holds 3 logs; name one of them: .*tfevents"):
        logs.read(tmp_path / "one")


def test_what_is_no_log(tmp_path):
    cases = {
        "a.csv": (
            "question,answer\nx,y\n",
            "no column of steps or epochs. Its columns are question, answer; rename",
        ),
        "b.csv": ("step,accuracy\n1,0.5\n", "no column of a loss. Its columns are step, accuracy"),
        "c.csv": ("step,loss\n1,x\n", "holds no loss of training yet"),
        "d.json": ("[1]", "is no state of Hugging Face's Trainer, or is damaged"),
        "e.json": ('{"log_history": [{"loss": 1}]}', "'step' is missing"),
        "f.json": ('{"log_history": [{"step": 1, "loss": "x"}]}', "is damaged"),
        "g.txt": ("1", "is no log that is known here. Known are a table (*.csv, *.tsv)"),
        "h.tfevents.1": ("nonsense", "holds no loss; its scalars are none"),
    }
    for name, (content, words) in cases.items():
        with pytest.raises(LorakitError) as found:
            logs.read(put(tmp_path / name, content))
        assert words in str(found.value) and str(tmp_path / name) in str(found.value)
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        with pytest.raises(LorakitError, match=f"{name}: no run here"):
            logs.read(tmp_path / name)


def test_a_run_of_ours_and_logs_of_others(tmp_path, finished, capsys):
    state = put(tmp_path / "theirs/trainer_state.json", STATE)
    table = put(tmp_path / "table.csv", "Epoch,Training Loss\n1,5.0\n2,4.0\n")
    found = lorakit.compare(finished.path, state, table)
    own, theirs, _ = found.logs
    assert [u["update"] for u in own.updates] == list(range(1, 13))
    assert own.updates[-1]["tokens"] == finished.record["target_tokens"]
    assert own.updates[-1]["seconds"] == pytest.approx(finished.record["seconds"])
    assert found.differences == [{}, {}] and found.settings == {"epochs": [3, 2, "?"]}
    assert found.unfair == [
        "the log of theirs, table does not name data and base: that they are the same is for you to know",
        "epochs are not updates: run counts updates, theirs counts updates, table counts epochs",
    ]
    rows = found.table()
    assert (
        rows[1]["updates"] == 30
        and rows[1]["loss at the end"] == 2.0
        and rows[1]["lowest validation"] == 2.6
    )
    assert rows[2]["epochs"] == 2
    assert f"curve of theirs: {said(theirs)}" in found.lines()
    assert said(theirs).startswith(
        "30 updates, loss 3.000 → 2.000, lowest validation 2.600 at update 20, 300 tokens (its tokens are"
    )
    assert (
        main(["compare", str(finished.path), str(state), "--plot", str(tmp_path / "x/c.png")]) == 0
    )
    assert "curve of theirs: 30 updates" in capsys.readouterr().out
    assert (tmp_path / "x/c.png").read_bytes()[:4] == b"\x89PNG"


def test_how_soon_a_run_is_as_low(tmp_path):
    slow = put(tmp_path / "slow.csv", "step,loss,tokens\n10,4.0,100\n20,3.0,200\n30,2.0,300\n")
    fast = put(tmp_path / "fast.csv", "step,loss,tokens\n10,3.0,150\n20,1.5,300\n")
    first, second = lorakit.compare(slow, fast).table()
    assert (first["updates to 2.000"], first["tokens to 2.000"], first["seconds to 2.000"]) == (
        30,
        300,
        None,
    )
    assert (second["updates to 2.000"], second["tokens to 2.000"]) == (20, 300)


def test_what_is_unfair_among_runs_of_ours(finished, copied):
    """A run that was stopped has a curve and no scores; other validation rows make other curves."""
    copied.note(status="stopped")
    with pytest.raises(LorakitError, match="has no scores yet"):
        lorakit.compare(finished.path, copied.path)
    assert lorakit.compare(finished.path, copied.path, unscored=True).unfair == []
    sets, meta = rows.read(copied / "rows")
    rows.write(copied / "fewer", sets | {"validation": sets["validation"].first(2)}, meta)
    shutil.rmtree(copied / "rows")
    (copied / "fewer").rename(copied / "rows")
    assert lorakit.compare(finished.path, copied.path, unscored=True).unfair == [
        "the validation rows differ: their curves cannot be laid beside each other"
    ]


def test_the_picture_has_an_axis_for_all_that_two_logs_tell(tmp_path, finished):
    state = put(tmp_path / "theirs/trainer_state.json", STATE)
    long = put(tmp_path / "long.csv", "step,loss\n1,5\n5000,4\n")
    drawn = figure([logs.read(p) for p in (finished.path, state, long)])
    assert [axes.get_xlabel() for axes in drawn.axes] == ["update", "tokens so far"]
    assert [axes.get_xscale() for axes in drawn.axes] == ["symlog", "linear"]
    assert drawn.axes[1].get_title() == "not in the log of long"


# Logs as they were published


def test_real_tables(real_data):
    ends = {
        "Llama3__8B_-Alpaca__cell14": (60, 1.8194, 0.9046),
        "TinyLlama__1.1B_-Alpaca__cell15": (375, 2.2801, 1.0743),
        "fine_tuning_vit_custom_dataset__cell43": (40, 0.3903, 0.1631),
    }
    for file in sorted((real_data / "loss_curves").glob("*.csv")):
        log = logs.read(file)
        assert log.updates and log.name == file.stem
        if file.stem in ends:
            assert (
                log.updates[-1]["update"],
                log.updates[0]["loss"],
                log.updates[-1]["loss"],
            ) == ends[file.stem]
        assert ("rewards" in " ".join(log.notes)) == ("GRPO" in file.stem)
    assert len(log.updates) == 100


def test_real_event_files(real_data):
    """The same fine-tune on 2, 2 and 4 cards: 2.270 -> 1.588, 1.588, 1.591 (SOURCE.txt)."""
    pytest.importorskip("tensorboard")
    files = sorted((real_data / "tfevents").glob("*.tfevents"))
    found = lorakit.compare(*files)
    assert [round(log.updates[0]["loss"], 3) for log in found.logs] == [2.270, 2.270, 2.270]
    assert [round(log.updates[-1]["loss"], 3) for log in found.logs] == [1.588, 1.588, 1.591]
    assert [len(log.validations["validation"]) for log in found.logs] == [10, 10, 10]
    assert found.settings == {"per_device_train_batch_size": [4, 4, 2]}
    assert any(
        reason.startswith("per_device_train_batch_size differs (4, 4, 2)")
        for reason in found.unfair
    )
    with pytest.raises(LorakitError, match="holds 3 logs; name one of them"):
        logs.read(real_data / "tfevents")


def test_a_real_state(real_data):
    log = logs.read(real_data / "trainer_state")
    assert log.updates[-1]["update"] == 12030 and sorted(log.validations) == [
        "g0",
        "g1",
        "g2",
        "g3",
        "g4",
        "g5",
    ]
    assert len(log.updates) == 30 and all(len(series) == 31 for series in log.validations.values())

"""What `lorakit plan` announces is what the run does."""

from functools import cache

import pytest
from helpers.machines import RECORDED
from helpers.pictures import made  # noqa: F401
from helpers.runs import tiny_run

import lorakit
from lorakit import cli
from lorakit.machine import distributed, hardware
from lorakit.machine.distributed import World
from lorakit.planning import ladder, memory
from lorakit.planning import setup as planning
from lorakit.run import Run
from lorakit.tasks import dataset
from lorakit.training import finetune as training
from lorakit.training.session import Session

# task -> settings of its data, models of several families that can do it
TASKS = {
    "chat": ({"data": "data/triage.jsonl"}, ["smollm2-135m", "qwen3-0.6b", "gemma-3-270m"]),
    "chat_images": ({"data": "data/leaves"}, ["gemma-3-4b", "qwen2.5-vl-3b"]),
    "classify_image": ({"data": "data/leaves"}, ["vit-base", "swin-tiny"]),
    "transcribe": (
        {"data": "data/digits", "columns": {"text": "label"}},
        ["whisper-small"],
    ),
}
# What setup decides where it is left open.
DECIDED = {
    "task",
    "engine",
    "quantization",
    "precision",
    "packing",
    "micro_batch_size",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "offload",
    "processes",
    "validate_every",
    "checkpoint_every",
}
CASES = [  # the first is part of every run of the suite, the others are slow
    pytest.param(task, model, marks=[pytest.mark.slow] if number or task != "chat" else [])
    for task, (_, models) in TASKS.items()
    for number, model in enumerate(models)
]


class Several(World):
    """One of several processes that all say the same."""

    def gather(self, value):
        return [value] * self.size

    def broadcast_from_rank0(self, find):
        return find()


class Loading(Exception):
    """The run has come to its weights: its settings are known."""


@pytest.fixture
def at_machine(monkeypatch, tmp_path):
    """(settings through `lorakit plan`, settings through the run) on a recorded machine."""
    prepare = cache(lambda settings: dataset.prepare(Run.model_validate_json(settings)))
    seen, setup = [], planning.setup

    def recorded(run, facts=None, **more):
        rows = prepare(run.with_(output_dir="outputs").model_dump_json(exclude_unset=True))
        seen.append(setup(run, facts, prepared=rows, **more))
        return seen[-1]

    def stop(plan, *_):
        raise Loading

    monkeypatch.setattr(planning, "setup", recorded)
    monkeypatch.setattr(training, "setup", recorded)
    monkeypatch.setattr(Session, "load", stop)
    monkeypatch.setattr(memory, "_count", lambda *_: 10**8)
    monkeypatch.setattr(memory, "matmul_rate", lambda precision: 1e12)
    monkeypatch.setattr(ladder, "refuse", lambda *_: None)

    def both(run, facts, number):
        monkeypatch.setattr(hardware, "facts", lambda folder=".": facts)
        settings = tmp_path / f"{number}.yaml"
        run.write(settings)
        assert cli.main(["plan", str(settings)]) == 0
        world = Several(0, seen[-1].settings.processes)
        monkeypatch.setattr(distributed, "join", lambda: world)
        with pytest.raises(Loading):
            training.finetune(Run.read(settings))
        return seen[-2], seen[-1]

    return both


@pytest.mark.parametrize(("task", "model"), CASES)
def test_plan_and_run_resolve_the_same_settings(at_machine, made, tmp_path, capsys, task, model):  # noqa: F811
    settings, _ = TASKS[task]
    for number, (name, facts) in enumerate(RECORDED.items()):
        run = Run(
            **settings,
            model=made(model),
            max_rows=60,
            max_length=256,
            name=f"run-{number}",
            output_dir=str(tmp_path / "outputs"),
        )
        planned, ran = at_machine(run, facts, number)
        assert planned.settings.model_dump() == ran.settings.model_dump(), name
        assert ran.settings.task == task
        assert "auto" not in ran.settings.model_dump(include=DECIDED).values(), name
        assert all(choice.reason for choice in ran.choices.values())


def test_the_task_decides_the_engine(at_machine, made, tmp_path):  # noqa: F811
    """On a Mac an engine for text alone is not announced for pictures."""
    mac = RECORDED["Mac, 16 GB"]
    run = Run(
        data="data/leaves",
        model=made("gemma-3-4b"),
        max_rows=60,
        max_length=256,
        output_dir=str(tmp_path),
    )
    planned, ran = at_machine(run, mac, 0)
    assert planned.settings.engine == ran.settings.engine
    assert planned.choices["engine"] == ran.choices["engine"]


def test_setup_of_a_run(base, rows_file, tmp_path):
    plan = planning.setup(tiny_run(base, rows_file, tmp_path, max_updates=None, epochs=2))
    rows = len(plan.prepared.rows["train"])
    assert plan.updates == 2 * -(-rows // plan.asked.global_batch_size)
    assert plan.base.config is plan.prepared.base.config
    assert plan.peak_memory["total"] == sum(
        plan.peak_memory[part] for part in ("weights", "trained", "working")
    )
    assert plan.settings.task == "chat" == plan.choices["task"].value


def test_more_processes_than_rows_are_refused(base, rows_file, tmp_path):
    run = tiny_run(base, rows_file, tmp_path, max_rows=12)
    with pytest.raises(lorakit.LorakitError) as error:
        planning.setup(run.with_(global_batch_size=64), processes=40)
    assert (error.value.setting, error.value.value) == ("processes", 40)

"""Settings: typed, refused by name when wrong or contradictory, the same after a way through YAML."""

from pathlib import Path

import pytest
import yaml

from lorakit.common.errors import LorakitError, did_you_mean
from lorakit.run import FREE_TO_CHANGE, Run

CONTRADICTIONS = [
    dict(method="full", quantization="nf4"),
    dict(method="full", quantization="int8"),
    dict(method="full", use_dora=True),
    dict(method="full", use_rslora=True),
    dict(validation_data="v.jsonl", validation_fraction=0.2),
    dict(test_data="t.jsonl", test_fraction=0.1),
    dict(validation_fraction=0.5, test_fraction=0.5),
    dict(early_stopping=3, validate_every=0),
    dict(early_stopping=3, validation_fraction=0.0),
    dict(use_dora=True, quantization="int8"),
    dict(fake_quantization="q4_0", method="full"),
    dict(fake_quantization="q8_0", quantization="nf4"),
    dict(fake_quantization="affine4", use_dora=True),
    dict(fake_quantization="q4_0", dropout=0.1),
    dict(use_dora=True, quantization="fp8"),
    dict(shard=True, quantization="fp8"),
    dict(micro_batch_size=16, global_batch_size=8),
    dict(micro_batch_tokens=512, max_length=513),
]
# One setting of each kind away from its default.
UNUSUAL = dict(
    data="дані.jsonl",
    name="run-1.a",
    validation_data="v.jsonl",
    test_fraction=0.0,
    columns={"prompt": "q: {x}"},
    quantization="nf4",
    target_modules=["q_proj", "v_proj"],
    learning_rate=1e-5,
    max_grad_norm=None,
    max_updates=7,
    validate_every=0,
    micro_batch_tokens=4096,
    packing=False,
    gradient_checkpointing="auto",
    max_minutes=1.5,
    metrics=["bleu", {"rouge": {"variant": "rougeL"}}],
    processes=1,
    checkpoint_every="auto",
)


@pytest.mark.parametrize("settings", CONTRADICTIONS, ids=lambda s: "+".join(s))
def test_a_contradiction_names_both_settings_and_both_values(settings):
    with pytest.raises(LorakitError) as caught:
        Run(data="d.jsonl", **settings)
    (a, one), (b, two) = settings.items()
    first, why = str(caught.value).split(": ", 1)
    assert first in (
        f"{a}={one!r} and {b}={two!r} contradict",
        f"{b}={two!r} and {a}={one!r} contradict",
    )
    assert len(why) > 10
    for name, value in settings.items():  # either of them alone is fine
        if name != "micro_batch_size":  # 16 is also more than the default of 8
            Run(
                data="d.jsonl",
                **({"max_length": 8} if name == "micro_batch_tokens" else {}) | {name: value},
            )


def test_a_contradiction_with_a_default_names_the_default_too():
    with pytest.raises(
        LorakitError, match="^micro_batch_size=16 and global_batch_size=8 contradict: "
    ):
        Run(data="d.jsonl", micro_batch_size=16)
    with pytest.raises(
        LorakitError, match="^micro_batch_tokens=512 and max_length=1024 contradict: "
    ):
        Run(data="d.jsonl", micro_batch_tokens=512)


def test_a_file_of_its_own_takes_nothing_from_the_data():
    run = Run(data="d.jsonl", validation_data="v.jsonl", test_data="t.jsonl", early_stopping=2)
    assert (run.validation_fraction, run.test_fraction) == (0, 0)
    assert Run(data="d.jsonl").validation_fraction == Run(data="d.jsonl").test_fraction == 0.1
    assert run.with_(seed=3).validation_data == "v.jsonl"


def test_unknown_settings_are_named_with_the_nearest():
    with pytest.raises(LorakitError, match=r"^unknown setting 'drpout'; did you mean 'dropout'\?$"):
        Run(data="d.jsonl", drpout=0.1)
    with pytest.raises(LorakitError, match="^unknown setting 'zzz'$"):
        Run(data="d.jsonl", zzz=1)
    assert did_you_mean("rnak", ["rank", "alpha"]) == "; did you mean 'rank'?"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(rank="lots"), "rank='lots': input should be a valid integer"),
        (dict(rank=1.5), "rank=1.5: input should be a valid integer"),
        (dict(rank=0), "rank=0: input should be greater than or equal to 1"),
        (dict(dropout=1), "dropout=1: input should be less than 1"),
        (dict(learning_rate=0), "learning_rate=0: input should be greater than 0"),
        (dict(learning_rate=float("nan")), "learning_rate=nan: "),
        (dict(learning_rate=float("inf")), "learning_rate=inf: input should be a finite number"),
        (dict(method="lorra"), "method='lorra': input should be 'lora' or 'full'"),
        (
            dict(precision="fp8"),
            "precision='fp8': input should be 'auto', 'fp32', 'bf16' or 'fp16'",
        ),
        (dict(micro_batch_size="many"), "micro_batch_size='many': "),
        (
            dict(micro_batch_size=0),
            "micro_batch_size=0: input should be greater than or equal to 1",
        ),
        (dict(validate_every=-1), "validate_every=-1: input should be greater than or equal to 0"),
        (dict(packing="perhaps"), "packing='perhaps': "),
        (dict(metrics=7), "metrics=7: input should be a valid list"),
        (dict(columns=["a"]), r"columns=\['a'\]: input should be a valid dictionary"),
        (dict(name="../up"), r"name='\.\./up' names a folder"),
        (dict(name=""), "name='' names a folder"),
        (dict(max_length=7), "max_length=7: input should be greater than or equal to 8"),
    ],
)
def test_wrong_values_are_named(settings, words):
    with pytest.raises(LorakitError, match=f"^{words}"):
        Run(data="d.jsonl", **settings)


def test_all_faults_are_told_at_once():
    with pytest.raises(
        LorakitError, match=r"^the setting 'data' is missing; rank=0: .*; epochs='x': "
    ):
        Run(rank=0, epochs="x")


def test_a_run_does_not_change():
    run = Run(data="d.jsonl", rank=4)
    with pytest.raises(Exception, match="frozen"):
        run.rank = 8
    assert run.with_(rank=8).rank == 8 and run.rank == 4
    assert run.given() == {"data": "d.jsonl", "rank": 4}
    with pytest.raises(LorakitError, match="unknown setting 'rnak'; did you mean 'rank'"):
        run.with_(rnak=8)


def test_paths_may_be_paths():
    run = Run(data=Path("a") / "b.jsonl", output_dir=Path("out"), name="x")
    assert (run.data, run.output_dir, run.folder) == (str(Path("a/b.jsonl")), "out", Path("out/x"))


@pytest.mark.parametrize(
    "settings",
    [
        dict(data="d.jsonl"),
        UNUSUAL,
        *(
            {"data": "d.jsonl", **s}
            for s in (
                dict(test_data="t.jsonl"),
                dict(target_modules=r".*\.q_proj$"),
                dict(metrics="auto", processes="auto"),
                dict(name="1e5"),
                dict(name="no"),
                dict(data="012"),
            )
        ),
    ],
)
def test_round_trip_through_yaml(settings, tmp_path):
    run = Run(**settings)
    run.write(tmp_path / "run.yaml")
    again = Run.read(tmp_path / "run.yaml")
    assert again == run and again.differences(run) == {}
    written = yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8"))
    assert list(written) == list(Run.model_fields)


def test_numbers_that_yaml_reads_as_text(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "data: d.jsonl\nlearning_rate: 1e-4\nrank: '4'\nmax_grad_norm: null\n"
    )
    run = Run.read(tmp_path / "run.yaml", epochs="2")
    assert (run.learning_rate, run.rank, run.max_grad_norm, run.epochs) == (1e-4, 4, None, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("data: d.jsonl\nrnak: 4\n", "unknown setting 'rnak'; did you mean 'rank'"),
        ("rank: 4\n", "the setting 'data' is missing"),
        ("data: d.jsonl\n1: x\n", "unknown setting '1'"),
        ("- data\n", "expected 'setting: value' lines, found list"),
        ("", "expected 'setting: value' lines, found NoneType"),
        ("data: [d.jsonl\n", "cannot be read as YAML: "),
        ("data: !!python/object:os.system x\n", "cannot be read as YAML: "),
        (b"data: caf\xe9\n", "cannot be read as YAML: "),
    ],
)
def test_a_wrong_file_is_named(content, words, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LorakitError) as caught:
        Run.read(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LorakitError, match="none.yaml: no such file"):
        Run.read(tmp_path / "none.yaml")


def test_differences_forbid_going_on():
    run = Run(data="d.jsonl", rank=4)
    other = run.with_(rank=8, target_modules=["q_proj"])
    assert run.differences(other) == {"rank": (4, 8), "target_modules": ("auto", ["q_proj"])}
    free = dict(
        max_updates=9,
        processes=2,
        max_minutes=3.0,
        checkpoint_every=5,
        output_dir="o",
        media_folder="m",
        name="n",
        log_to=["wandb"],
        samples=2,
        general_questions=0,
    )
    assert set(free) == FREE_TO_CHANGE and run.differences(run.with_(**free)) == {}
    assert (
        run.differences(Run(data="d.jsonl", rank=4, seed=0)) == {}
    )  # a default said aloud is the same


def test_every_setting_describes_itself():
    for name, field in Run.model_fields.items():
        assert field.description and field.description.endswith("."), name

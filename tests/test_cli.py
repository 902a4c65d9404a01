"""The command: exit codes, one message instead of a traceback, the same functions behind it."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import lorakit
from lorakit.cli import main
from lorakit.runs.folder import read_lines


@pytest.fixture
def command(capsys):
    """(arguments) -> (exit code, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def write_yaml(path, **settings):
    path.write_text(yaml.safe_dump(settings))
    return path


# Usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "a", "b"],
        ["train", "--processes", "two", "a"],
        ["compare"],
        ["ask", "folder"],
        ["doctor", "--yaml"],
    ],
)
def test_wrong_usage_is_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: lorakit" in capsys.readouterr().err


def test_the_installed_command():
    out = subprocess.run(
        [sys.executable, "-m", "lorakit.cli", "--version"], capture_output=True, text=True
    )
    assert (out.returncode, out.stdout.strip(), out.stderr) == (0, "0.1.0", "")
    out = subprocess.run(
        [sys.executable, "-m", "lorakit.cli", "train", "nowhere.yaml"],
        capture_output=True,
        text=True,
    )
    assert (out.returncode, out.stdout) == (1, "")
    assert (
        out.stderr.startswith("lorakit: nowhere.yaml: no such file") and out.stderr.count("\n") == 1
    )


# Bad input


def refused(command, words, *arguments):
    code, _, err = command(*arguments)
    assert code == 1
    assert ("\n" + err).count("\nlorakit: ") == 1 and "Traceback" not in err
    assert words in err
    return err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: [unclosed", "run.yaml: cannot be read as YAML"),
        ("- a\n- b", "run.yaml: expected 'setting: value' lines, found list"),
        ("", "run.yaml: expected 'setting: value' lines, found NoneType"),
        (
            "data: x.jsonl\nlearning_rat: 1",
            "unknown setting 'learning_rat'; did you mean 'learning_rate'?",
        ),
        ("model: tiny", "the setting 'data' is missing"),
        ("data: x.jsonl\nrank: 0", "rank=0: input should be greater than or equal to 1"),
        ("data: x.jsonl\nlearning_rate: fast", "learning_rate='fast'"),
        (
            "data: x.jsonl\nmethod: full\nquantization: nf4",
            "method='full' and quantization='nf4' contradict",
        ),
        (
            "data: x.jsonl\nmicro_batch_size: 16",
            "micro_batch_size=16 and global_batch_size=8 contradict",
        ),
        ("data: {rows}\nmodel: nowhere", "model='nowhere': no such folder, and not a hub id"),
        ("data: {rows}\nmodel: nobody/nothing", "nobody/nothing could not be loaded"),
        ("data: x.jsonl\nmodel: {base}", "x.jsonl: no such file (looked from"),
        (
            "data: {folder}\nmodel: {base}",
            "no file in it can be read (it has .yaml; known endings: .aif",
        ),
    ],
)
@pytest.mark.parametrize("name", ["train", "plan"])
def test_settings_that_cannot_be(command, tmp_path, base, rows_file, name, text, words):
    path = tmp_path / "run.yaml"
    text = (
        text.replace("{base}", base).replace("{rows}", rows_file).replace("{folder}", str(tmp_path))
    )
    path.write_text(
        f"output_dir: {tmp_path}/outputs\n{text}" if text[:4] in ("data", "mode") else text
    )
    refused(command, words, name, path)


def test_settings_on_the_command_line(command, tmp_path):
    path = write_yaml(tmp_path / "run.yaml", data="x.jsonl", output_dir=str(tmp_path))
    refused(command, "--set rank: expected NAME=VALUE", "train", path, "--set", "rank")
    refused(
        command, "--set rank=[: the value cannot be read as YAML", "train", path, "--set", "rank=["
    )
    refused(command, "unknown setting 'rnk'; did you mean 'rank'?", "train", path, "--set", "rnk=4")


def test_the_number_of_processes(command, tmp_path, monkeypatch, rows_file):
    """Asked for on the command line; with several cards not more than there are."""
    from lorakit.machine import hardware

    started = []
    monkeypatch.setattr(
        import_module("lorakit.training.launch"),
        "together",
        lambda run, count: started.append((run.processes, count)) or "",
    )
    path = write_yaml(tmp_path / "run.yaml", data=rows_file, output_dir=str(tmp_path), processes=3)
    assert command("train", path) == command("train", path, "--processes", "2") == (0, "", "")
    card = hardware.Card("Tesla T4", 15 * 10**9, (7, 5))
    monkeypatch.setattr(
        hardware, "facts", lambda folder=".": hardware.Facts(memory=10**10, cards=(card, card))
    )
    refused(command, "processes=3, and this machine has 2 cards; lower it", "train", path)
    assert command("train", path, "--set", "processes=auto") == (0, "", "")
    assert started == [(3, 3), (2, 2), ("auto", 2)]


def test_paths_that_are_not_what_they_should_be(command, tmp_path, rows_file):
    (tmp_path / "file").write_text("")
    path = write_yaml(tmp_path / "run.yaml", data=rows_file, output_dir=str(tmp_path / "file"))
    refused(command, "cannot be written", "train", path)
    refused(command, "no file in it can be read", "plan", tmp_path)
    for name, *more in (("report",), ("compare", tmp_path), ("ask", "why?"), ("evaluate",)):
        refused(command, "no run here (record.json is missing)", name, tmp_path, *more)
    refused(command, "no such notebook", "run", tmp_path / "none.ipynb")
    refused(command, "no such file", "check", tmp_path / "none.jsonl")
    refused(
        command, "no format reads '.xyz'; known endings: ", "check", write_yaml(tmp_path / "a.xyz")
    )
    refused(command, "there is no task 'knit'", "check", rows_file, "--task", "knit")


def test_a_full_disk_and_an_interrupt_are_one_line(command, monkeypatch, rows_file):
    from lorakit.data import loading

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(loading, "read", full)
    refused(command, "No space left on device: 'x'", "check", rows_file)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "read", interrupted)
    refused(command, "interrupted; what was saved is kept", "check", rows_file)


# Looking before training


def test_check(command, tmp_path, rows_file):
    code, out, err = command("check", rows_file)
    assert (code, err) == (0, "")
    assert (
        "80 rows, jsonl; schema prompt_completion" in out
        and "80 rows can be used, 0 cannot; sets: train 80" in out
    )
    rows = [
        '{"prompt": "a?", "completion": "no"}',
        '{"prompt": "b?", "completion": ""}',
        '{"prompt": "a?", ',
        '{"prompt": "a?", "completion": "no"}',
        '{"prompt": null, "completion": "no"}',
        "[1]",
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    code, out, err = command("check", tmp_path / "rows.jsonl")
    assert (code, err) == (1, "")
    for line, words in (
        (2, "'completion' is empty"),
        (3, "broken JSON"),
        (5, "'prompt' is null"),
        (6, "expected an object {…}, found list"),
    ):
        assert f"\nrows.jsonl:{line}: {words}" in out
    assert "2 rows can be used, 4 cannot; sets: train 2" in out
    assert "1 row left out of train as repetitions of other rows there" in out
    assert "\nrows.jsonl:1: " not in out and "\n    rows.jsonl:4 repeats rows.jsonl:1\n" in out


def test_check_with_columns_and_task(command, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"ask": "a?", "say": "no"}\n')
    refused(command, "the columns ask, say fit no schema", "check", tmp_path / "rows.jsonl")
    code, out, _ = command(
        "check",
        tmp_path / "rows.jsonl",
        *("--columns", "prompt=ask,completion=say"),
        *("--set", "validation_fraction=0", "--set", "test_fraction=0"),
    )
    assert code == 0 and "1 row can be used, 0 cannot" in out
    refused(
        command,
        "fit no schema",
        "check",
        tmp_path / "rows.jsonl",
        "--columns",
        "prompt=ask,completion=say",
        "--task",
        "text",
    )
    refused(
        command,
        "--columns prompt: expected NAME=COLUMN",
        "check",
        tmp_path / "rows.jsonl",
        "--columns",
        "prompt",
    )


def test_doctor(command):
    code, out, _ = command("doctor")
    found = json.loads(command("doctor", "--json")[1])
    assert code == (1 if found["problems"] else 0)
    assert found.keys() == {"facts", "choices", "problems", "notes", "lines"}
    assert f"engine: torch ({found['choices']['engine'][1]})" in out.splitlines()
    assert all(reason for _, reason in found["choices"].values())


def test_doctor_names_the_cure(command, monkeypatch):
    from lorakit.machine import hardware

    packages = {"torch": "2.13.0", "transformers": "5.23", "datasets": "5.2"}
    monkeypatch.setattr(
        hardware,
        "facts",
        lambda folder=".": hardware.Facts(
            python="3.9.1", memory=2 * 10**9, disk_free=10**9, packages=packages
        ),
    )
    code, out, _ = command("doctor")
    assert code == 1
    assert "WRONG: peft is not installed. Cure: pip install lorakit, or make env in a clone" in out
    assert [line.split(".")[0] for line in out.splitlines() if line.startswith("WRONG")] == [
        "WRONG: peft is not installed",
        "WRONG: bitsandbytes is not installed, so QLoRA is not possible",
        "WRONG: only 1",
        "WRONG: only 2",
        "WRONG: Python 3",
    ]


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (("Tesla T4", 15, (7, 5)), ("fp16", "Tesla T4 has no bf16 hardware")),
        (("NVIDIA L4", 23, (8, 9)), ("bf16", "NVIDIA L4 computes bf16 in hardware")),
        (None, ("fp32", "this CPU has no units for bf16 (AMX, AVX-512 BF16)")),
    ],
)
def test_precision_is_chosen_by_the_card(base, card, expected):
    from lorakit.machine import hardware
    from lorakit.planning import choose

    cards = (hardware.Card(card[0], card[1] * 10**9, card[2]),) if card else ()
    facts = hardware.Facts(memory=8 * 10**9, cards=cards, packages={"torch": "2.13"})
    run, choices = choose.resolve(lorakit.Run(data="-", model=base), facts)
    assert (choices["precision"], run.precision) == (expected, expected[0])


def test_quantization_and_checkpointing_are_chosen_by_the_room(base, monkeypatch):
    """The parts add up; a base that does not fit is quantized, activations that do not fit are recomputed."""
    from lorakit.machine import hardware
    from lorakit.planning import choose
    from lorakit.planning import memory as cost

    wanted = lorakit.Run(data="-", model=base, max_length=512)
    facts = lambda memory: hardware.Facts(memory=memory, packages={"torch": "2.13"})
    run, choices = choose.resolve(wanted, facts(10**12))
    assert (run.quantization, run.gradient_checkpointing) == ("none", False)
    parts = cost.memory(run)
    assert parts["total"] == pytest.approx(sum(v for k, v in parts.items() if k != "total"), abs=4)
    run, choices = choose.resolve(wanted, facts(10**6))
    assert (run.quantization, run.gradient_checkpointing) == ("nf4", True)
    assert "may be used" in choices["quantization"][1]
    assert cost.memory(run)["working"] < parts["working"]
    assert cost.memory(run)["weights"] < parts["weights"]


def test_plan(command, tmp_path, base, rows_file):
    path = write_yaml(
        tmp_path / "run.yaml",
        model=base,
        data=rows_file,
        max_length=128,
        max_updates=7,
        output_dir=str(tmp_path / "outputs"),
    )
    code, out, _ = command("plan", path, "--set", "global_batch_size=4")
    assert code == 0
    assert "precision: " in out and "memory: 0.0" in out and " in 7 updates" in out
    tokens = int(out.split(" tokens in 7")[0].rsplit(" ", 1)[1].replace(",", ""))
    assert 7 * 4 * 25 < tokens < 7 * 4 * 40  # rows of 27 to 37 bytes and four special tokens
    assert not (tmp_path / "outputs/run/record.json").exists()


def test_plan_refuses_what_does_not_fit(command, tmp_path, base, rows_file, monkeypatch):
    from lorakit.machine import hardware

    path = write_yaml(
        tmp_path / "run.yaml", model=base, data=rows_file, max_length=128, output_dir=str(tmp_path)
    )
    monkeypatch.setattr(
        hardware, "facts", lambda folder=".": hardware.Facts(memory=10**6, packages={"torch": "2"})
    )
    refused(
        command,
        "are needed and 0.0 GB are there, one row at a time; take a smaller model",
        "plan",
        path,
    )


# A run and what is made of it


def test_train(command, quick, tmp_path, base, rows_file):
    path = write_yaml(
        tmp_path / "run.yaml",
        model=base,
        data=rows_file,
        max_length=128,
        max_updates=99,
        alpha=64,
        output_dir=str(tmp_path),
        max_new_tokens=8,
        learning_rate=1e-4,
    )
    changes = ["--set", "max_updates=10", "--set", "learning_rate=1e-3", "--set", "name=mine"]
    code, out, err = command("train", path, *changes)
    assert code == 0 and "Traceback" not in err
    folder = lorakit.Folder(tmp_path / "mine")
    assert out.splitlines()[0] == f"{folder.path}: status: done"
    assert out.splitlines()[-1] == f"See {folder / 'report.html'}"
    assert max(u["learning_rate"] for u in folder.history()[0]) == 1e-3
    assert command("train", path, *changes)[:2] == (0, out)
    history = (folder / "history.jsonl").read_bytes()
    refused(
        command,
        "learning_rate: 0.001 there, 0.002 now",
        "train",
        path,
        *changes,
        "--set",
        "learning_rate=2e-3",
    )
    assert (folder / "history.jsonl").read_bytes() == history
    assert folder.record["status"] == "done"


def test_a_stopped_run_says_so(command, quick, tmp_path, base, rows_file):
    path = write_yaml(
        tmp_path / "run.yaml",
        model=base,
        data=rows_file,
        max_length=128,
        max_updates=10,
        output_dir=str(tmp_path),
        max_minutes=1e-9,
        max_new_tokens=8,
    )
    code, out, _ = command("train", path)
    assert code == 0
    assert (
        out
        == f"{tmp_path}/run: status: stopped: max_minutes=1e-09 is over after update 1; start it again to resume\n"
    )


def test_report(command, copied):
    for name in ("report.html", "report.md", "loss.png"):
        (copied / name).unlink()
    assert command("report", copied.path)[:2] == (0, f"{copied / 'report.html'}\n")
    assert all(
        (copied / name).stat().st_size > 500 for name in ("report.html", "report.md", "loss.png")
    )


def test_compare(command, copied, finished, tmp_path):
    (copied / "run.yaml").write_text(
        (finished / "run.yaml").read_text().replace("rank: 16", "rank: 4")
    )
    code, out, _ = command(
        "compare", finished.path, copied.path, "--plot", tmp_path / "plots/curves.png"
    )
    assert code == 0
    assert out.startswith("rank: 16, 4\nloss: run ") and "unfair" not in out
    assert (tmp_path / "plots/curves.png").read_bytes()[:4] == b"\x89PNG"
    refused(command, "compare needs two runs or more", "compare", finished.path)


def test_ask(command, finished):
    answer = read_lines(finished / "answers.jsonl")[0]
    code, out, _ = command("ask", finished.path, answer["prompt"], "--base")
    assert code == 0
    assert out == f"base: {answer['before']}\ntuned: {answer['after']}\n"
    assert command("ask", finished.path, answer["prompt"])[1] == f"{answer['after']}\n"


def test_evaluate(command, copied):
    code, out, _ = command("evaluate", copied.path, "--metrics", "cer,wer")
    assert code == 0
    assert out.startswith("wer: ") and "\ncer: " in out
    assert out.splitlines()[-1] == f"See {copied / 'scores-again.json'}"
    assert Path(copied / "scores-again.json").exists()

"""One whole run, its files, its proof, and what is made of finished runs."""

import hashlib
import html.parser
import json
import math
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import save_base
from helpers.runs import repeat_here, tiny_run
from transformers import AutoModelForCausalLM, LlamaConfig

import lorakit
from lorakit.engines.torch.engine import TorchEngine
from lorakit.results import plots, report
from lorakit.runs.folder import Folder, read_lines
from lorakit.tasks import rows
from lorakit.tasks.batches import Batch
from lorakit.training import proof
from lorakit.training.session import Session
from lorakit.training.session import schedule as rate_of

UPDATE_KEYS = {
    "update",
    "loss",
    "target_tokens",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "seconds",
    "memory_bytes",
    "skipped",
}


def finetune(run):
    return lorakit.finetune(run)


def test_answers_at_every_validation(quick, run):
    folder = finetune(run.with_(samples=2))
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [x["update"] for x in lines] == [3, 3, 6, 6, 9, 9, 12, 12] and len(
        {x["prompt"] for x in lines}
    ) == 2
    assert all(isinstance(x["answer"], str) for x in lines)


def write_rows(path, pairs):
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    return str(path)


# The files


def test_the_files_of_a_run(finished):
    names = {p.name for p in finished.path.iterdir()} - {".lock"}
    assert names == {
        "run.yaml",
        "record.json",
        "rows",
        "history.jsonl",
        "scores.json",
        "answers.jsonl",
        "rejected.jsonl",
        "report.md",
        "report.html",
        "loss.png",
        "confusion.png",
        "adapter",
        "checkpoint",
        "outcomes",
    }
    assert (finished / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {
        p.name for p in (finished / "adapter").iterdir()
    }
    assert {p.name for p in (finished / "checkpoint").iterdir()} == {
        "last.safetensors",
        "best.safetensors",
    }
    assert {p.name for p in (finished / "rows").iterdir()} == {
        "train",
        "validation",
        "test",
        "meta.json",
    }
    assert {p.name for p in (finished / "outcomes").iterdir()} == {"before.json", "after.json"}


def test_the_history_of_a_run(finished):
    updates, validations = finished.history()
    assert [u["update"] for u in updates] == list(range(1, 13))
    assert all(u.keys() == UPDATE_KEYS for u in updates)
    assert [(v["update"], v.keys()) for v in validations] == [
        (n, {"update", "validation_loss"}) for n in (3, 6, 9, 12)
    ]
    assert updates[-1]["loss"] < updates[0]["loss"] - 1
    assert all(u["seconds"] > 0 and u["skipped"] is False for u in updates)


def test_the_memory_of_a_run_holds_what_it_trains(quick, run, tmp_path):
    """Resident bytes above those before the base was there: every update needs the base, the adapters, their gradients
    and two moments, in blocks so large that none hides in what the process had freed before."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=1,
        num_attention_heads=8,
        max_position_embeddings=512,
        eos_token_id=257,
        pad_token_id=258,
    )
    folder = finetune(
        run.with_(
            model=save_base(tmp_path / "base", config),
            target_modules=["gate_proj", "up_proj", "down_proj"],
            rank=1536,
            max_rows=24,
            max_updates=2,
            validate_every=0,
            max_new_tokens=1,
        )
    )
    updates, record = folder.history()[0], folder.record
    trained = 3 * 1536 * (1024 + 2048)
    assert record["trained_parameters"] == trained
    least = 4 * (record["parameters"] - trained) + 4 * 4 * trained  # bytes
    # What earlier tests of this process have freed is used again, and is not seen.
    assert 0.4 * least < updates[0]["memory_bytes"] <= updates[1]["memory_bytes"] < 1.5 * least
    assert record["peak_memory"]["measured"] >= updates[1]["memory_bytes"]


def test_the_record_of_a_run(finished, rows_file, base):
    record, updates = finished.record, finished.history()[0]
    assert (record["status"], record["error"], record["method"]) == ("done", None, "LoRA")
    assert {"python", "torch", "transformers", "peft", "lorakit"} <= record["versions"].keys()
    assert all(len(choice) == 2 and choice[1] for choice in record["choices"].values())
    assert {"engine", "packing", "micro_batch_tokens", "gradient_checkpointing"} <= record[
        "choices"
    ].keys()
    assert record["data"]["sha256"] == hashlib.sha256(Path(rows_file).read_bytes()).hexdigest()
    assert record["data"]["rows"] == {"train": 64, "validation": 8, "test": 8}
    weights = hashlib.sha256((Path(base) / "model.safetensors").read_bytes()).hexdigest()
    assert record["base_sha256"] == hashlib.sha256(weights.encode()).hexdigest()
    assert record["peak_memory"]["predicted"] > 10**6
    assert record["target_tokens"] == sum(u["target_tokens"] for u in updates)
    assert record["seconds"] == pytest.approx(sum(u["seconds"] for u in updates))
    assert record["tokens_per_second"] == pytest.approx(record["target_tokens"] / record["seconds"])
    # 7 projections of 2 layers, rank 16: 16 (in + out) each; q, o: 64 64, k, v: 64 32, gate, up, down: 64 128
    assert record["trained_parameters"] == 2 * 16 * (2 * 128 + 2 * 96 + 3 * 192)
    assert record["parameters"] == record["trained_parameters"] + sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(base).parameters()
    )
    assert record["proof"].keys() == {"finite", "applied", "frozen", "trained", "reloaded"}
    assert record["proof"]["trained"] == "28 tensors, all changed"


def test_the_written_settings_run_again(finished, quick, tmp_path):
    again = finetune(lorakit.Run.read(finished / "run.yaml", output_dir=str(tmp_path)))
    adapter = [(f / "adapter/adapter_model.safetensors").read_bytes() for f in (finished, again)]
    assert adapter[0] == adapter[1]
    assert again.scores == finished.scores


def test_the_scores_are_those_of_plain_models(finished, base):
    """Loss on the test rows before and after, by transformers and PEFT alone; every metric's entry is complete."""
    from peft import PeftModel

    test = rows.read(finished / "rows")[0]["test"]
    scores, losses = finished.scores, {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for when in ("before", "after"):
        model = (
            model
            if when == "before"
            else PeftModel.from_pretrained(model, str(finished / "adapter"))
        )
        total, count = 0.0, 0
        for row in test:
            ids, marks = (
                torch.tensor(np.asarray(row["ids"]))[None].long(),
                torch.tensor(np.asarray(row["targets"])),
            )
            with torch.no_grad():
                logits = model.eval()(ids).logits[0, :-1]
            total += float(
                F.cross_entropy(logits[marks[1:]], ids[0, 1:][marks[1:]], reduction="sum")
            )
            count += int(marks.sum())
        losses[when] = total / count
    assert {k: scores["loss"][k] for k in losses} == pytest.approx(losses, rel=1e-5)
    assert scores["perplexity"]["after"] == pytest.approx(math.exp(losses["after"]), rel=1e-5)
    assert scores.keys() == {"loss", "perplexity", "token_accuracy", "exact_match", "chrf"}
    for name, entry in scores.items():
        assert {
            "before",
            "after",
            "difference",
            "interval",
            "rows",
            "higher_is_better",
        } <= entry.keys(), name
        assert entry["rows"] == 8
        assert entry["difference"] == pytest.approx(entry["after"] - entry["before"])
        low, high = entry["interval"]
        assert low <= entry["difference"] <= high
    assert scores["exact_match"]["most_frequent_answer"]["answer"] == "no"
    low, high = scores["loss"]["interval"]
    assert high < -1


def test_the_answers_belong_to_rows_of_the_data(finished, rows_file):
    lines = Path(rows_file).read_text().splitlines()
    answers = read_lines(finished / "answers.jsonl")
    assert len(answers) == 8
    for answer in answers:
        name, line = answer["where"].rsplit(":", 1)
        row = json.loads(lines[int(line) - 1])
        assert (name, answer["prompt"], answer["reference"]) == (
            "rows.jsonl",
            row["prompt"],
            row["completion"],
        )
    assert any(a["before"] != a["after"] for a in answers)


PLAIN = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0]
assert "lorakit" not in sys.modules
prompt = [{"role": "user", "content": "abc?"}]
text = AutoTokenizer.from_pretrained(adapter).apply_chat_template(prompt, tokenize=False)
print(json.dumps([logits.tolist(), text]))
"""


def test_plain_peft_loads_the_adapter(finished, base):
    ids = np.asarray(rows.read(finished / "rows")[0]["test"][0]["ids"])
    out = subprocess.run(
        [sys.executable, "-c", PLAIN, base, str(finished / "adapter"), json.dumps(ids.tolist())],
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    logits, text = json.loads(out.stdout.splitlines()[-1])
    assert text == "<|user|>abc?<|end|>"
    engine = lorakit.tuned(finished.path)[0]
    batch = Batch(
        ids.astype(np.int64), np.arange(len(ids)) > 0, np.array([len(ids)]), np.array([0])
    )
    with torch.no_grad(), engine.passes.evaluating():
        mine = engine.passes.logits(batch).numpy()
    np.testing.assert_allclose(mine, np.array(logits)[:-1], atol=1e-4)
    with torch.no_grad(), engine.model.disable_adapter():
        assert np.abs(engine.passes.logits(batch).numpy() - mine).max() > 0.1


# Kinds of runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({"quantization": "nf4"}, "QLoRA (NF4)"),
        ({"method": "full", "learning_rate": 3e-3}, "full fine-tuning"),
        (
            {
                "use_dora": True,
                "use_rslora": True,
                "target_modules": ["q_proj", "up_proj"],
                "packing": False,
            },
            "LoRA",
        ),
        (
            {"precision": "bf16", "optimizer": "paged_adamw_8bit", "gradient_checkpointing": True},
            "LoRA",
        ),
    ],
)
def test_kinds_of_runs_are_done(quick, run, changes, method):
    folder = finetune(run.with_(**changes))
    assert (folder.record["status"], folder.record["method"]) == ("done", method)
    assert folder.scores["loss"]["interval"][1] < -0.5
    assert (folder / ("model" if run.with_(**changes).method == "full" else "adapter")).is_dir()
    answers = [a["after"] for a in read_lines(folder / "answers.jsonl")][:2]
    prompts = [a["prompt"] for a in read_lines(folder / "answers.jsonl")][:2]
    assert lorakit.ask(folder.path, prompts) == answers


def test_plain_text(quick, run, tmp_path):
    words = [w.split("?")[0] for w in re.findall(r'"prompt": "(.*?)"', Path(run.data).read_text())]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": w + " over and out."}) + "\n" for w in words))
    folder = finetune(run.with_(data=str(path)))
    assert folder.record["data"]["task"] == "text"
    assert folder.scores.keys() == {"loss", "perplexity", "token_accuracy"}
    assert folder.scores["loss"]["interval"][1] < 0
    assert all(a["before"] is None for a in read_lines(folder / "answers.jsonl"))
    assert isinstance(lorakit.ask(folder.path, "abc")[0], str)


def test_sets_of_their_own_and_none(quick, run, tmp_path):
    files = [
        write_rows(
            tmp_path / f"{name}.jsonl", [(f"{name} {chr(97 + i) * 6} {i}?", "no") for i in range(4)]
        )
        for name in ("validation", "test")
    ]
    folder = finetune(run.with_(validation_data=files[0], test_data=files[1]))
    assert folder.record["data"]["rows"] == {"train": 80, "validation": 4, "test": 4}
    assert [a["where"] for a in read_lines(folder / "answers.jsonl")] == [
        f"test.jsonl:{n}" for n in (1, 2, 3, 4)
    ]
    folder = finetune(
        run.with_(name="none", validation_fraction=0.0, test_fraction=0.0, max_updates=3)
    )
    assert folder.record["status"] == "done"
    assert folder.scores == {} and folder.history()[1] == []
    assert "there were no test rows" in (folder / "report.md").read_text()


def test_a_control_learns_from_answers_dealt_at_random(quick, run, finished):
    """In a thread, where no signal can be caught."""
    found = []
    thread = threading.Thread(
        target=lambda: found.append(finetune(run.with_(shuffle_answers=True)))
    )
    thread.start()
    thread.join()
    sets, honest = rows.read(found[0] / "rows")[0], rows.read(finished / "rows")[0]
    assert found[0].record["status"] == "done"
    assert sets["train"].column("prompt") == honest["train"].column("prompt")
    assert sets["train"].column("reference") != honest["train"].column("reference")
    assert sorted(sets["train"].column("reference")) == sorted(honest["train"].column("reference"))
    assert sets["test"].column("reference") == honest["test"].column("reference")
    assert any("control" in line for line in found[0].record["data"]["lines"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_rates(schedule, expected):
    rate = rate_of(lorakit.Run(data="-", schedule=schedule, warmup_ratio=0.3, learning_rate=1.0), 6)
    assert [rate(u) for u in range(6)] == pytest.approx(expected, abs=1e-6)


# Done is earned


def after_loop(monkeypatch, act):
    real = Session.train

    def train(session, *more, **named):
        start = session.engine.weights()
        stop = real(session, *more, **named)
        act(session.engine, start)
        return stop

    monkeypatch.setattr(Session, "train", train)


def refused(run, words):
    with pytest.raises(lorakit.LorakitError, match=words) as error:
        finetune(run)
    folder = Folder(run.folder)
    assert folder.record["status"] == "failed"
    assert folder.record["error"] == str(error.value)
    assert str(error.value)[:40] in (folder / "report.md").read_text()
    return folder


def test_refused_when_a_frozen_tensor_changed(quick, run, monkeypatch):
    def act(engine, start):
        engine.model.get_input_embeddings().weight.data[7, 3] += 1e-3

    after_loop(monkeypatch, act)
    refused(run, r"done is refused: the frozen tensor '.*embed_tokens.weight' changed \(1 in all\)")


def test_refused_when_a_trained_tensor_did_not_change(quick, run, monkeypatch):
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.default.weight"
    after_loop(
        monkeypatch,
        lambda engine, start: engine.set_weights({**engine.weights(), name: start[name]}),
    )
    refused(run, rf"done is refused: '{re.escape(name)}' did not change in 12 updates \(1 in all\)")


@pytest.mark.parametrize("validate_every", [0, 3])
def test_refused_when_the_adapter_is_not_finite(quick, run, monkeypatch, validate_every):
    def act(engine, start):
        next(iter(engine.trained.values())).data[0, 0] = math.nan

    after_loop(monkeypatch, act)
    refused(
        run.with_(validate_every=validate_every),
        "done is refused: .* not finite; lower learning_rate",
    )


def test_refused_when_no_update_was_applied(quick, run, monkeypatch):
    monkeypatch.setattr(TorchEngine, "update", lambda self, rate, count: (1.0, True))
    refused(run, "done is refused: fp16 skipped all 12 updates")


def spoiled(change):
    """`save`, and then the file is changed."""
    from safetensors.numpy import load_file, save_file

    real = TorchEngine.save

    def save(self, path):
        real(self, path)
        file = path / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})

    return save


def test_refused_when_what_was_saved_says_something_else(quick, run, monkeypatch):
    def forget(tensors):
        for name in tensors:
            tensors[name] *= 0.5

    monkeypatch.setattr(TorchEngine, "save", spoiled(forget))
    refused(
        run,
        r"done is refused: the saved adapter, loaded in a fresh process, gives other losses: [\d.]+ instead",
    )


def test_refused_when_the_fresh_process_answers_otherwise(run, monkeypatch):
    def other(command, **more):
        said = json.loads(repeat_here(command).stdout)
        said["answers"][1] = [1, 2, 3]
        return SimpleNamespace(returncode=0, stdout=json.dumps(said), stderr="")

    monkeypatch.setattr(proof, "subprocess", SimpleNamespace(run=other))
    refused(
        run, "done is refused: the saved adapter, loaded in a fresh process, gives other answers"
    )


@pytest.mark.slow
def test_refused_when_nothing_can_be_loaded(run, monkeypatch):
    """By a real process, which dies of a configuration that is no JSON."""
    real = TorchEngine.save

    def save(self, path):
        real(self, path)
        (path / "adapter_config.json").write_text("{")

    monkeypatch.setattr(TorchEngine, "save", save)
    folder = refused(
        run.with_(max_updates=2), "could not be loaded in a fresh process: .*cannot be loaded onto"
    )
    assert not (folder / "scores.json").exists()


def test_refused_when_the_fresh_process_dies(run, monkeypatch):
    dead = SimpleNamespace(returncode=1, stdout="", stderr="Traceback …\nOSError: no such file\n")
    monkeypatch.setattr(proof, "subprocess", SimpleNamespace(run=lambda *args, **more: dead))
    refused(
        run.with_(max_updates=2), "could not be loaded in a fresh process: OSError: no such file$"
    )


def test_a_loss_that_is_no_number_fails_the_run_and_keeps_what_was_written(quick, run, monkeypatch):
    real = TorchEngine.backward

    def backward(self, batch):
        total, count = real(self, batch)
        return (math.nan if self.updates == 6 else total), count

    def update(self, rate, count, real=TorchEngine.update):
        self.updates += 1
        return real(self, rate, count)

    monkeypatch.setattr(TorchEngine, "updates", 0, raising=False)
    monkeypatch.setattr(TorchEngine, "backward", backward)
    monkeypatch.setattr(TorchEngine, "update", update)
    folder = refused(run, "the loss became nan at update 7: no layer overflows by itself; lower")
    assert [u["update"] for u in folder.history()[0]] == [1, 2, 3, 4, 5, 6]
    assert (folder / "checkpoint/last.safetensors").exists()
    assert "the loss became nan at update 7" in (folder / "report.html").read_text()


def test_a_start_that_fails_says_so_and_the_next_one_counts(quick, run, tmp_path):
    broken = write_rows(tmp_path / "rows.jsonl", [("a?", "")])
    run = run.with_(data=broken, max_updates=2)
    for words in ("'completion' is empty", "no such file"):
        with pytest.raises(lorakit.LorakitError, match=words):
            finetune(run)
        assert Folder(run.folder).record["status"] == "failed"
        assert words in Folder(run.folder).record["error"]
        Path(broken).unlink(missing_ok=True)
    write_rows(tmp_path / "rows.jsonl", [(f"{chr(97 + i) * 5} {i}?", "no") for i in range(20)])
    assert finetune(run).record["status"] == "done"
    assert Folder(run.folder).record["error"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"processes": 2},
            r"processes=2, and this is one process: start them by lorakit.launch\(run\), or",
        ),
        ({"engine": "abacus"}, "there is no engine 'abacus'.*torch"),
        ({"precision": "fp16"}, "precision='fp16' needs a CUDA card"),
        ({"task": "knit"}, "there is no task 'knit'"),
        ({"metrics": ["applause"]}, "there is no metric 'applause'"),
        ({"model": "nowhere"}, "no such folder"),
    ],
)
def test_what_is_not_served_is_refused_by_name(quick, run, changes, words):
    if torch.cuda.is_available() and "precision" in changes:
        pytest.skip("there is a card")
    with pytest.raises(lorakit.LorakitError, match=words):
        finetune(run.with_(**changes))


# The report


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.words = [], ""

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words += data


def test_the_report_shows_hostile_text_and_runs_none_of_it(quick, run, tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*191 }}{% raw %}"
    path = write_rows(
        tmp_path / "a<b>&'x'.jsonl", [(f"{chr(97 + i) * 5} {i} {evil}", evil) for i in range(20)]
    )
    folder = finetune(run.with_(data=path, max_updates=2, max_length=256, max_new_tokens=2))
    page = (folder / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not {"script", "b"} & {tag for tag, _ in tags.seen}
    assert {a["src"][:22] for tag, a in tags.seen if tag == "img"} == {"data:image/png;base64,"}
    assert not any(name.startswith("on") for _, attributes in tags.seen for name in attributes)
    assert evil in tags.words and path in tags.words
    assert "1337" not in re.sub(r"base64,[^\"]*", "", page)


def test_the_report_says_what_was_found(finished):
    words = (finished / "report.md").read_text()
    scores = finished.scores
    assert words.startswith("# run: done\n")
    for name, entry in scores.items():
        assert (
            f"| {name} | {report.number(entry['before'])} | {report.number(entry['after'])} |"
            in words
        )
    for choice, (_, reason) in finished.record["choices"].items():
        assert f"- {choice} = " in words and reason in words
    headline = report.verdict(scores)[1]
    assert headline in words and "8 test rows" in headline


def test_overfitting_is_said():
    line = [{"update": u, "validation_loss": loss} for u, loss in ((10, 2.0), (20, 1.5), (30, 1.6))]
    assert report.alarm(line) == (
        "Overfitting: the validation loss was lowest at update 20 (1.500) and ended at 1.600."
    )
    assert (
        report.alarm(line[:2])
        == report.alarm([*line[:2], {"update": 30, "validation_loss": 1.51}])
        == ""
    )


def test_the_curve_is_smoothed_without_a_start_at_zero():
    assert plots.smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert plots.smooth([1.0, 3.0], 2) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75])


def test_an_interactive_curve(finished):
    figure = lorakit.curve(finished.path)
    assert [len(trace.x) for trace in figure.data] == [12, 12, 4]


# Comparing runs


@pytest.fixture(scope="module")
def second(base, rows_file, tmp_path_factory):
    """The same rows, another rank and another global batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "subprocess", SimpleNamespace(run=repeat_here))
        return finetune(
            tiny_run(
                base,
                rows_file,
                tmp_path_factory.mktemp("second"),
                name="second",
                rank=4,
                global_batch_size=4,
            )
        )


def test_two_runs_side_by_side(finished, second):
    found = lorakit.compare(finished.path, second.path)
    assert found.names == ["run", "second"]
    assert found.settings == {
        "rank": [16, 4],
        "global_batch_size": [8, 4],
        "micro_batch_size": [8, 4],
    }
    assert found.unfair == ["the global batch sizes differ: [8, 4]"]
    (entries,) = found.differences
    for name, entry in entries.items():
        assert entry["before"] == pytest.approx(finished.scores[name]["after"])
        assert entry["after"] == pytest.approx(second.scores[name]["after"])
        assert entry["rows"] == 8
    # Paired: the interval of the difference row by row, not that of two independent means.
    sums = [
        np.array(json.loads((f / "outcomes/after.json").read_text())["tokens"])
        for f in (finished, second)
    ]
    index = np.random.default_rng(0).integers(0, 8, (2000, 8))
    means = [s[index, 0].sum(1) / s[index, 1].sum(1) for s in sums]
    low, high = np.quantile(means[1] - means[0], [0.025, 0.975])
    width = entries["loss"]["interval"][1] - entries["loss"]["interval"][0]
    assert width == pytest.approx(high - low, rel=0.3)
    text = str(found)
    assert "rank: 16, 4" in text and "unfair: the global batch sizes differ" in text
    assert lorakit.compare(finished.path, finished.path).settings == {}
    assert lorakit.compare(finished.path, finished.path).differences[0]["loss"]["interval"] == [
        0,
        0,
    ]


def test_what_cannot_be_compared(finished, second, copied, quick, run, tmp_path):
    path = write_rows(
        tmp_path / "other.jsonl", [(f"{chr(97 + i) * 5} {i}?", "no") for i in range(20)]
    )
    other = finetune(run.with_(data=path, max_updates=2))
    found = lorakit.compare(finished.path, other.path)
    assert found.unfair == [
        "the data differ",
        "the test rows of run are others: its scores cannot be paired",
    ]
    assert found.differences == [{}]
    with pytest.raises(lorakit.LorakitError, match="two runs or more"):
        lorakit.compare(finished.path)
    with pytest.raises(lorakit.LorakitError, match="no run here"):
        lorakit.compare(finished.path, tmp_path)
    copied.note(status="failed")
    with pytest.raises(lorakit.LorakitError, match=r"has no scores yet \(status failed\)"):
        lorakit.compare(finished.path, copied.path)
    unscored = finetune(run.with_(name="unscored", test_fraction=0.0, max_updates=1))
    with pytest.raises(lorakit.LorakitError, match="was not scored: it had no test rows"):
        lorakit.compare(finished.path, unscored.path)


def test_another_base_is_unfair(copied, finished):
    copied.note(base_sha256="0" * 64)
    assert lorakit.compare(finished.path, copied.path).unfair == ["the bases differ"]


# Scoring again


def test_the_same_rows_score_the_same_again(copied, finished):
    (copied / "scores.json").unlink()
    path, lines = lorakit.rescore(copied.path)
    assert path == copied / "scores.json"
    assert copied.scores == finished.scores
    assert lines[0].startswith("exact_match: ")


def test_other_metrics(copied, finished):
    path, _ = lorakit.rescore(copied.path, metrics=["cer", {"exact_match": {"ignore_case": True}}])
    assert path == copied / "scores-again.json"
    found = json.loads(path.read_text())
    assert found.keys() == {"loss", "perplexity", "cer", "exact_match"}
    assert found["loss"] == finished.scores["loss"]
    assert copied.scores == finished.scores
    with pytest.raises(lorakit.LorakitError, match="there is no metric 'applause'"):
        lorakit.rescore(copied.path, metrics=["applause"])


def test_other_rows_without_those_of_training(copied, finished, rows_file, tmp_path):
    """All rows of the run and two new ones: the 64 + 8 that it learnt from and chose by are left out."""
    trained = [json.loads(x) for x in Path(rows_file).read_text().splitlines()]
    new = [
        {"prompt": "what now, dear friend?", "completion": "no"},
        {"prompt": "go on?", "completion": "yes go"},
    ]
    path = tmp_path / "more.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*trained, *new]))
    target, lines = lorakit.rescore(copied.path, data=str(path))
    assert target == copied / "scores-more.json"
    assert json.loads(target.read_text())["loss"]["rows"] == 8 + 2
    assert "72 rows left out: the run trained on them" in lines
    tests = {a["prompt"] for a in read_lines(finished / "answers.jsonl")}
    path.write_text("".join(json.dumps(r) + "\n" for r in trained if r["prompt"] not in tests))
    with pytest.raises(lorakit.LorakitError, match="the run trained on every row of it"):
        lorakit.rescore(copied.path, data=str(path))


def test_what_is_not_saved_cannot_be_asked(copied):
    shutil.rmtree(copied / "adapter")
    with pytest.raises(lorakit.LorakitError, match="has nothing saved yet"):
        lorakit.ask(copied.path, "abc?")


def test_asking(finished):
    answers = read_lines(finished / "answers.jsonl")
    prompts = [a["prompt"] for a in answers]
    assert lorakit.ask(finished.path, prompts) == [a["after"] for a in answers]
    assert lorakit.ask(finished.path, prompts, adapted=False) == [a["before"] for a in answers]
    assert len(lorakit.ask(finished.path, prompts[0], max_new_tokens=1)[0]) <= 1

"""A plug-in is a folder of files, one a thing: each is found by its name and used end to end, with no other change."""

from __future__ import annotations

import json
import os
import textwrap

import pytest

import lorakit
from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.results import logs

FILES = {
    "formats/toy": """
        from pathlib import Path
        from lorakit.data.example import Example
        SUFFIXES = (".toy",)
        def read(path):
            for number, line in enumerate(Path(path).read_text().splitlines(), 1):
                riddle, solved = line.split("|")
                yield Example({"riddle": riddle, "solved": solved}, Path(path).name, number)
        """,
    "schemas/riddle": """
        GIVES, REQUIRED, OPTIONAL, RICHNESS = "messages", (("riddle",), ("solved",)), (), 35
        def convert(fields):
            asked = {"role": "user", "content": fields["riddle"]}
            return {"messages": [asked, {"role": "assistant", "content": fields["solved"]}]}
        """,
    "checks/shouting": """
        from lorakit.data.quality import Finding
        TITLE, SAMPLED = "shouting", False
        class Check:
            def __init__(self, encode, max_length): self.count = 0
            def see(self, example, set): self.count += example.fields["columns"]["solved"].isupper()
            def findings(self): return [Finding("note", f"{self.count} answers shout", [], self.count)]
            def facts(self): return {"shouting": self.count}
            def draw(self, axes): return 0
        """,
    "tasks/riddles": """
        from lorakit.tasks import chat
        GIVES, OBJECTIVE, MEDIUM = "messages", "all_but_first", ""
        METRICS, COLUMNS = ("loss",), chat.COLUMNS
        encode, ask, guard, stop_ids, opening = chat.encode, chat.ask, chat.guard, chat.stop_ids, chat.opening
        """,
    "objectives/all_but_first": """
        import numpy as np
        from lorakit.tasks.protocol import Document
        HEAD, NEEDS, UNIT = "tokens", "target_loss", "tokens after the first"
        def documents(row):
            targets = np.array(row["targets"], dtype=bool)
            targets[np.flatnonzero(targets)[:1]] = False
            return [Document(row["ids"], targets)]
        """,
    "quantization/sixteenths": """
        LABEL = "LoRA (sixteenths)"
        def bits_per_weight(width): return 6.0
        def load_options(dtype, skip): return {}
        def convert(model, device, skip):
            import torch
            count = 0
            for module in model.modules():
                if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
                    module.weight.data = (module.weight.data * 16).round() / 16
                    count += 1
            return count, "rounded to sixteenths"
        """,
    "metrics/brevity": """
        import numpy as np
        NEEDS, HIGHER_IS_BETTER = ("answers",), False
        def rows(references, predictions): return np.array([[len(p)] for p in predictions], dtype=float)
        def score(rows): return float(rows.mean()) if len(rows) else float("nan")
        """,
    "trackers/lines": """
        class Tracker:
            def __init__(self, name, settings, folder): self.file = open(folder / "lines.txt", "a")
            def log(self, update, values): self.file.write(f"{update} {values['loss']}\\n")
            def close(self): self.file.close()
        """,
    "logs/plain": """
        from lorakit.results.logs import Log
        WHAT = "plain.txt: an update and a loss a line"
        def claims(path): return path.name == "plain.txt"
        def read(path):
            pairs = [line.split() for line in path.read_text().splitlines()]
            return Log("plain", "plain", [{"update": float(u), "loss": float(l)} for u, l in pairs])
        """,
    "export/copy": """
        from dataclasses import replace
        from lorakit.exporting.targets import adapter
        def write(source, folder, kind):
            return [*adapter.write(source, folder, kind), "copied by a plug-in"]
        TARGET = replace(adapter.TARGET, write=write)
        """,
}


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    for name, content in FILES.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(content), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_PLUGINS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def settings(plugins, tmp_path_factory):
    folder = tmp_path_factory.mktemp("riddles")
    lines = [
        f"What is {i} plus {i + 1}?|{'IT IS' if i % 4 else 'it is'} {2 * i + 1}" for i in range(40)
    ]
    (folder / "riddles.toy").write_text("\n".join(lines), encoding="utf-8")
    return lorakit.Run(
        name="toys", data=str(folder / "riddles.toy"), output_dir=str(folder), task="riddles",
        quantization="sixteenths", metrics=["brevity"], log_to=["lines"], max_updates=2,
        max_new_tokens=4, max_length=64, precision="fp32", validate_every=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(settings):
    return lorakit.finetune(settings)


def test_format_schema_and_task(folder):
    data = folder.record["data"]
    assert (folder.record["status"], data["schema"], data["task"]) == ("done", "riddle", "riddles")
    assert "riddles.toy: 40 rows, toy; schema riddle" in data["lines"][0]


def test_objective_trains_what_it_says(settings):
    """Of n answer tokens n - 1 are targets."""
    from lorakit.tasks import rows
    from lorakit.tasks.batches import collate

    sets, _ = rows.read(lorakit.prepare(settings).path / "rows")
    row = sets["train"][0]
    assert collate([row], [0], documents=sets["train"].documents).count == sum(row["targets"]) - 1


def test_quantization_is_applied_and_named(folder):
    assert folder.record["method"] == "LoRA (sixteenths)"
    count, reason = folder.record["choices"]["sixteenths"]
    assert count > 0 and reason == "rounded to sixteenths"


def test_metric(folder):
    score = json.loads((folder / "scores.json").read_text())["brevity"]
    assert score["rows"] > 0 and score["after"] >= 0 and score["higher_is_better"] is False


def test_tracker(folder):
    lines = (folder / "lines.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]


def test_check(settings):
    checked = lorakit.check(settings)
    assert "30 answers shout" in checked.words("shouting")


def test_log_reader(plugins, tmp_path):
    (tmp_path / "plain.txt").write_text("1 2.5\n2 2.0\n")
    log = logs.read(tmp_path / "plain.txt")
    assert (log.kind, [u["loss"] for u in log.updates]) == ("plain", [2.5, 2.0])


def test_export_target(folder, tmp_path):
    out = lorakit.export(folder.path, "copy", tmp_path / "out")
    assert (out / "adapter_model.safetensors").exists()
    assert "copied by a plug-in" in (out / "export.json").read_text()


# The registry itself


def one(monkeypatch, tmp_path, name, content=""):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    monkeypatch.setenv("LORAKIT_PLUGINS", str(tmp_path / "mine"))
    return path


def test_without_the_folder_there_is_no_plug_in(monkeypatch, plugins):
    assert "brevity" in registry.names("metrics")
    monkeypatch.delenv("LORAKIT_PLUGINS")
    assert "brevity" not in registry.names("metrics")


def test_several_folders(monkeypatch, plugins, tmp_path):
    one(monkeypatch, tmp_path, "metrics/second.py")
    both = os.pathsep.join([str(plugins), str(tmp_path / "mine")])
    monkeypatch.setenv("LORAKIT_PLUGINS", both)
    assert {"brevity", "second"} <= {*registry.names("metrics")}


def test_a_folder_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAKIT_PLUGINS", str(tmp_path / "nowhere"))
    with pytest.raises(LorakitError) as refused:
        registry.names("metrics")
    assert refused.value.setting == "LORAKIT_PLUGINS" and refused.value.cure


def test_a_name_that_is_taken_is_refused(monkeypatch, tmp_path):
    one(monkeypatch, tmp_path, "formats/csv.py")
    with pytest.raises(LorakitError) as refused:
        registry.names("formats")
    assert "'csv'" in refused.value.message and refused.value.cure


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("tasks/half.py", "GIVES = 'messages'", "lacks 'COLUMNS'"),
        ("objectives/half.py", "HEAD, NEEDS, UNIT = 'tokens', 'target_loss', 'x'", "lacks 'documents'"),
        ("quantization/half.py", "LABEL = 'half'", "lacks 'bits_per_weight'"),
        ("tasks/broken.py", "def", "cannot be imported"),
        ("tasks/lost.py", "import nothing_of_this_name", "cannot be imported"),
    ],
)  # fmt: skip
def test_a_file_that_breaks_the_interface_is_named(monkeypatch, tmp_path, name, content, words):
    path = one(monkeypatch, tmp_path, name, content)
    with pytest.raises(LorakitError, match=words) as refused:
        registry.load(path.parent.name, path.stem)
    assert str(path) in refused.value.where and refused.value.cure


def test_importing_engines_imports_no_framework():
    import subprocess
    import sys

    code = (
        "import sys; from lorakit import engines; engines.every();"
        "print([m for m in ('torch', 'transformers', 'mlx.core', 'unsloth') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

"""Unsloth's engine: when it is chosen, from recorded facts; where it is installed, one curve with the torch engine.

`make test-unsloth` runs the second half in an environment of its own, in Unsloth's CPU mode.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata, util
from pathlib import Path

import pytest
import yaml
from helpers.paths import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

import lorakit
from lorakit import engines
from lorakit.common.errors import LorakitError
from lorakit.engines import unsloth as engine
from lorakit.machine import hardware
from lorakit.machine.hardware import Facts
from lorakit.models.spec import Spec
from lorakit.planning import choose

T4, P100, H200 = hardware.read_cards(
    "Tesla T4, 15360, 7.5\nTesla P100-PCIE-16GB, 16384, 6.0\nNVIDIA H200, 143771, 9.0"
)
# What unsloth 2026.10.9 and unsloth_zoo 2026.10.9 say of themselves.
CAPS = [
    Requirement(words)
    for words in (
        "transformers!=5.0.0,!=5.1.0,<=5.17.0,>=4.52.4",
        "datasets!=4.0.*,!=4.1.0,!=4.4.*,!=4.5.0,<5.0.0,>=3.4.1",
        "trl!=0.19.0,<=1.15.0,>=0.18.2",
        "peft!=0.11.0,>=0.18.0",
        "bitsandbytes!=0.46.0,!=0.48.0,>=0.45.5",
        "torch<2.15.0,>=2.4.0",
        "accelerate>=0.34.1",
        "huggingface_hub>=0.34.0",
    )
]


def facts(*cards, unsloth="2026.10.9", **more):
    packages = {
        "torch": "2.11.0",
        "transformers": "5.17.0",
        **({"unsloth": unsloth} if unsloth else {}),
    }
    return Facts(
        **{"packages": packages, "memory": 32 * 10**9, "disk_free": 10**11, "cards": cards, **more}
    )


@pytest.mark.parametrize(
    "here, spec, words",
    [
        (facts(T4), Spec(), ""),
        (facts(H200, unsloth="2026.9.1"), Spec(), ""),
        (facts(T4, T4), Spec(), ""),
        (facts(T4, unsloth=None), Spec(), "unsloth is not installed"),
        (
            facts(P100),
            Spec(),
            "unsloth's kernels need compute capability 7.0, and Tesla P100-PCIE-16GB is sm_60",
        ),
        (facts(mps=True), Spec(), "unsloth's kernels need a CUDA card"),
        (
            facts(unsloth="2026.10.7"),
            Spec(),
            "unsloth 2026.10.7 needs a CUDA card; 2026.10.9 and later train text on a CPU too",
        ),
        (facts(), Spec(), ""),
        (
            facts(),
            Spec(name="gemma-3-4b", config={"text_config": {}}),
            "on a CPU unsloth serves text alone, and gemma-3-4b reads more",
        ),
    ],
)
def test_where_it_serves(here, spec, words):
    assert engine.fits(here, spec) == words


@pytest.fixture
def torch_everywhere(monkeypatch):
    """Cards of a recorded machine are served by the torch that is installed here."""
    monkeypatch.setattr(
        engines,
        "every",
        lambda: {name: engines.get(name) for name in ("torch", "unsloth")},
    )


def choice(here, **settings):
    return choose.engine(lorakit.Run(data="-", **settings), here, Spec())


def test_it_is_chosen_on_a_card_and_else_the_reason_is_said(torch_everywhere):
    assert choice(facts(H200)) == (
        "unsloth",
        "unsloth 2026.10.9 is installed, and its kernels serve NVIDIA H200",
    )
    assert choice(facts(H200, unsloth=None)) == (
        "torch",
        "it serves cuda (unsloth: unsloth is not installed)",
    )
    assert choice(facts())[0] == "torch"
    assert choice(facts(), engine="unsloth") == ("unsloth", "asked for")
    with pytest.raises(LorakitError, match=r"no engine can serve here: unsloth: .*sm_60"):
        choice(facts(P100), engine="unsloth")


def test_pictures_are_served_in_conversations_and_the_rest_is_refused_by_name(torch_everywhere):
    assert choice(facts(H200), task="chat_images")[0] == "unsloth"
    for task, words in {
        "caption": "name task=chat_images",
        "classify_image": "it does not serve classify_image",
        "classify_text": "it does not serve classify_text",
        "transcribe": "it does not serve transcribe",
    }.items():
        name, said = choice(facts(H200), task=task)
        assert name == "torch" and words in said
        with pytest.raises(LorakitError, match=f"no engine can serve here: unsloth: .*{words}"):
            choice(facts(H200), task=task, engine="unsloth")


def test_beside_pictures_the_language_model_alone_is_trained():
    run = lorakit.Run(
        data="-", rank=4, alpha=8, task="chat_images", gradient_checkpointing=True, seed=3
    )
    common = {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "random_state": 3,
        "use_gradient_checkpointing": "unsloth",
    }
    seeing = {
        "finetune_vision_layers": False,
        "finetune_language_layers": True,
        "finetune_attention_modules": True,
        "finetune_mlp_modules": True,
    }
    assert engine.adapter_options(run, ["q_proj"]) == {
        **common,
        **seeing,
        "target_modules": ["q_proj"],
    }
    assert engine.adapter_options(run, "all-linear") == {**common, **seeing, "target_modules": None}
    assert engine.adapter_options(run.with_(task="chat"), "all-linear") == {
        **common,
        "target_modules": "all-linear",
    }


def test_imported_too_late_it_is_left_out_in_words(torch_everywhere, monkeypatch):
    monkeypatch.setattr(engine, "refused", [])
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", sys)
    choose.first(lorakit.Run(data="-", engine="torch"), facts(H200))
    assert engine.refused == []  # nobody asked
    choose.first(lorakit.Run(data="-"), facts(H200))
    name, words = choice(facts(H200))
    assert name == "torch" and "transformers was imported before unsloth in this process" in words
    with pytest.raises(
        LorakitError, match=r"imported before unsloth .* lorakit\.launch\(run\) or lorakit train"
    ):
        choice(facts(H200), engine="unsloth")


def test_its_file_loads_nothing_that_has_to_come_after_it():
    code = (
        "import sys; from lorakit.machine.hardware import Facts; from lorakit.planning import choose; "
        "from lorakit.run import Run; "
        "choose.first(Run(data='-', engine='unsloth'), Facts()); print(*sys.modules)"
    )
    words = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "lorakit.engines.unsloth" in words.split()
    assert not {"transformers", "peft", "trl", "torch"} & set(words.split())


def test_the_environment_lies_inside_its_caps_and_our_own_floors():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = [
        Requirement(r)
        for r in (*project["dependencies"], *project["optional-dependencies"]["test"])
    ]
    entries = yaml.safe_load((ROOT / "environment-unsloth.yml").read_text(encoding="utf-8"))
    (listed,) = (e["pip"] for e in entries["dependencies"] if isinstance(e, dict))
    pinned = {p.name: p for p in map(Requirement, (p for p in listed if not p.startswith("-")))}
    needed = "transformers datasets trl peft bitsandbytes torch accelerate".split()
    assert pinned.keys() >= {*needed}
    for name in needed:
        (version,) = (s.version for s in pinned[name].specifier)
        wanted = [r.specifier for r in (*CAPS, *ours) if r.name == name]
        assert len(wanted) >= 2 and all(s.contains(Version(version)) for s in wanted), pinned[name]


def pins(words):
    """Each `trl==1.15.0` in it."""
    return set(re.findall(r"\w+==[\d.]+", words))


def test_the_target_the_environment_and_the_cell_install_the_same():
    makefile, conda, guide = (
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("Makefile", "environment-unsloth.yml", "docs/guides/engines.md")
    )
    found = re.findall(
        r"^(TORCH|UNSLOTH|UNSLOTH_PEERS) := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE
    )
    torch, alone, peers = (
        pins(dict(found)[name]) for name in ("TORCH", "UNSLOTH", "UNSLOTH_PEERS")
    )
    (listed,) = (e["pip"] for e in yaml.safe_load(conda)["dependencies"] if isinstance(e, dict))
    assert {p for p in pins(" ".join(listed)) if not p.startswith("torchvision==")} == torch | peers
    assert pins(" ".join(re.findall(r"%pip install .*", guide))) == peers | alone
    assert "--no-deps $(UNSLOTH)\n" in makefile
    for words in (conda, guide):
        (last,) = re.findall(r"pip install (?:-q )?--no-deps (.*)", words)
        assert pins(last) == set(last.split()) == alone


# The same loop around Unsloth's model: in processes of their own, since it must be imported first.

installed = pytest.mark.skipif(
    not util.find_spec("unsloth"), reason="unsloth is not installed: make test-unsloth"
)
CODE = """
import json, sys, lorakit
folder = lorakit.finetune(lorakit.Run(**json.loads(sys.argv[1])))
found = folder.record
lines = [line["loss"] for line in folder.history()[0]]
print(json.dumps([found["status"], found["proof"], found["choices"], lines]))
"""


def trained(engine, folder, **changes):
    """(status, proof, choices, step losses) of the embedded model, trained in a process of its own."""
    settings = {
        "name": engine,
        "engine": engine,
        "model": "tiny",
        "data": str(ROOT / "data/relief.jsonl"),
        "output_dir": str(folder),
        "max_updates": 10,
        "max_length": 128,
        "max_rows": 64,
        "precision": "fp32",
        "quantization": "none",
        "learning_rate": 1e-3,
        "max_new_tokens": 8,
        **changes,
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(settings)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@installed
@pytest.mark.parametrize("cap", CAPS, ids=lambda cap: cap.name)
def test_the_caps_are_what_it_says_of_itself(cap):
    (said, *_) = (
        r
        for r in map(Requirement, metadata.requires("unsloth"))
        if r.name == cap.name and not r.marker
    )
    assert set(cap.specifier) <= set(said.specifier)
    assert {s for s in said.specifier if s.operator in ("<", "<=")} <= set(cap.specifier)


def takes(file, kind, method):
    """Names of a method's parameters, read from unsloth's source: its files for a card import nowhere else."""
    (root,) = util.find_spec("unsloth").submodule_search_locations
    tree = ast.parse(Path(root, "models", file).read_text(encoding="utf-8"))
    (made,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind)
    (found,) = (n for n in made.body if isinstance(n, ast.FunctionDef) and n.name == method)
    return {given.arg for given in found.args.args}


@installed
@pytest.mark.parametrize(
    "task, loads, adapts",
    [
        ("chat", ("loader.py", "FastLanguageModel"), ("llama.py", "FastLlamaModel")),
        ("chat_images", ("loader.py", "FastModel"), ("vision.py", "FastBaseModel")),
    ],
)
def test_on_a_card_it_takes_the_arguments_that_it_is_given(task, loads, adapts):
    options = engine.adapter_options(lorakit.Run(data="-", task=task), "all-linear")
    assert options.keys() <= takes(*adapts, "get_peft_model") | {
        "use_dora"
    }  # PEFT's, through **kwargs
    assert takes(*loads, "from_pretrained") >= {
        "max_seq_length",
        "dtype",
        "device_map",
        "load_in_4bit",
        "load_in_8bit",
        "use_exact_model_name",
        "fix_tokenizer",
        "random_state",
        "use_gradient_checkpointing",
    }


@installed
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packing": False},
        {"quantization": "nf4"},
        {"gradient_checkpointing": True, "dropout": 0.1, "use_rslora": True},
    ],
    ids=["packed", "padded", "nf4", "recomputed"],
)
def test_the_curve_is_the_torch_engines(changes, tmp_path):
    status, proof, choices, losses = trained("unsloth", tmp_path, **changes)
    _, _, other, expected = trained("torch", tmp_path, **changes)
    assert (
        status == "done" and proof["trained"] == "70 tensors, all changed" and "reloaded" in proof
    )
    assert choices["engine"][0] == "unsloth" and choices["loading"][0] == "FastLanguageModel"
    if changes.get("packing", True):
        assert choices["packing"][0] is other["packing"][0] is True
    assert len(losses) == len(expected) == 10 and losses[-1] < losses[0] - 0.5
    assert max(abs(a - b) for a, b in zip(losses, expected)) <= 1e-5


@installed
def test_a_cut_run_goes_on_and_its_adapter_is_pefts(tmp_path):
    steady = {"schedule": "constant", "warmup_ratio": 0.0, "checkpoint_every": 4}
    trained("unsloth", tmp_path / "cut", max_updates=4, **steady)
    again = trained("unsloth", tmp_path / "cut", max_updates=8, **steady)
    whole = trained("unsloth", tmp_path / "whole", max_updates=8, compile=True, **steady)
    assert again[0] == whole[0] == "done" and again[3] == whole[3]
    assert whole[2]["compile"][0] is False and "compile" not in again[2]
    adapters = [tmp_path / name / "unsloth/adapter" for name in ("cut", "whole")]
    assert len({(a / "adapter_model.safetensors").read_bytes() for a in adapters}) == 1
    code = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
from lorakit.models import base_model
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_model.of("tiny").path), sys.argv[1])
print(sum(p.abs().sum().item() > 0 for n, p in model.named_parameters() if "lora_B" in n))
"""
    told = subprocess.run(
        [sys.executable, "-c", code, str(adapters[0])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.strip().endswith("35")

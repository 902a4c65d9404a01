"""The host's memory of all processes together: planned, refused, and what loading takes of it."""

import json
import subprocess
import sys

import pytest
import torch
from helpers.machines import GB, T4, facts
from transformers import AutoModelForCausalLM, LlamaConfig

import lorakit
from lorakit.common.errors import LorakitError
from lorakit.planning import host_memory, memory

KAGGLE = facts(T4, T4, place="kaggle", memory=29 * GB)
COLAB = facts(T4, place="colab", memory=int(12.7 * GB))
# Of Phi-3-mini: embedding, head, and the gate and up projections of two layers.
LARGEST = 2 * 32064 * 3072 + 2 * 16384 * 3072


def run(**changes):
    return lorakit.Run(
        model="phi-3-mini",
        data="-",
        **{
            "engine": "torch",
            "precision": "fp16",
            "quantization": "nf4",
            "processes": 2,
            **changes,
        },
    )


def test_two_ranks_on_kaggle():
    planned = host_memory.host(run(), KAGGLE)
    assert planned == {
        "idle": int(2 * 1.95e9),
        "loading": 2 * 2 * LARGEST,
        "kept": 0,
        "total": int(2 * 1.95e9) + 2 * 2 * LARGEST,
    }
    assert host_memory.host(run(quantization="none"), KAGGLE) == planned  # tensor by tensor too
    host_memory.refuse(run(), KAGGLE)


def test_one_rank_on_colab():
    assert host_memory.host(run(processes=1), COLAB)["total"] == int(1.95e9) + 2 * LARGEST
    host_memory.refuse(run(processes=1), COLAB)


def test_sharded_processes_each_hold_the_model_first():
    sharded = run(shard=True, quantization="none")
    planned = host_memory.host(sharded, KAGGLE)
    of = memory.shape(sharded)
    assert planned["loading"] == 2 * 2 * (of.linear + of.other)
    host_memory.refuse(sharded, KAGGLE)
    with pytest.raises(
        LorakitError, match=r"2 processes need about 19\.\d GB of the host"
    ) as error:
        host_memory.refuse(sharded, facts(T4, T4, memory=int(12.7 * GB)))
    assert (error.value.setting, error.value.value) == ("shard", True)
    assert error.value.cure == "shard=false, or processes=1"


def test_a_paged_optimizer_and_offloaded_activations_are_kept_there(monkeypatch):
    monkeypatch.setattr(memory, "working", lambda run, of, facts: 1e9 if run.offload else 5e9)
    of = memory.shape(run())
    planned = host_memory.host(run(offload=True, optimizer="paged_adamw_32bit"), KAGGLE, of)
    assert planned["kept"] == 2 * (4e9 + 8 * of.adapter)


def test_processes_on_cpus_hold_a_model_each(monkeypatch):
    monkeypatch.setattr(memory, "memory", lambda run, of, facts: {"total": 3 * GB})
    assert host_memory.host(run(), facts(memory=8 * GB), memory.shape(run()))["total"] == 6 * GB
    with pytest.raises(LorakitError, match="2 processes need about 6.0 GB") as error:
        host_memory.refuse(run(), facts(memory=5 * GB), memory.shape(run()))
    assert error.value.cure == "processes=1"
    host_memory.refuse(run(processes=1), facts(memory=1 * GB))


LOAD = """
import json, re, sys, threading, time
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForCausalLM, core_model_loading
import lorakit
from lorakit.engines.torch import loading
from lorakit.machine import hardware

hardware.return_large_blocks()  # as `load` does
folder, placed = sys.argv[1], sys.argv[2] == "card"
plain = core_model_loading._materialize_copy
def to_card(tensor, device=None, dtype=None):  # read, cast in the host's memory, away
    return plain(tensor, "cpu", dtype).clone().to("meta")
if placed:
    core_model_loading._materialize_copy = to_card
anonymous = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
seen, done = [anonymous()], threading.Event()
def watch():
    while not done.is_set():
        seen.append(anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
run = lorakit.Run(model=folder, data="-", engine="torch", precision="fp16", quantization="none")
options = {"device_map": {"": "meta"}} if placed else {}
config = AutoConfig.from_pretrained(folder)
model, _ = loading.base(run, folder, AutoModelForCausalLM, config, False, "sdpa", options)
done.set()
thread.join()
print(json.dumps((max(seen) - seen[0]) * 1024))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_loading_onto_a_card_holds_a_few_tensors(tmp_path):
    """A checkpoint of 411 MB in eight files, stored in bf16 and loaded in fp16 without quantization."""
    pytest.importorskip("transformers.core_model_loading")
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    stored = sum(p.nbytes for p in model.parameters())
    model.save_pretrained(tmp_path, max_shard_size="60MB")
    assert len(list(tmp_path.glob("*.safetensors"))) >= 7
    took = {}
    for way in ("card", "host"):
        command = [sys.executable, "-c", LOAD, str(tmp_path), way]
        out = subprocess.run(command, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr[-2000:]
        took[way] = json.loads(out.stdout.splitlines()[-1])
    assert took["card"] < 0.5 * stored and took["host"] > 0.95 * stored

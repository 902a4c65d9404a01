"""`adapter_init: eva` in a whole run: noted settings, a proof in a fresh process, and resumed to the same adapter."""

import pytest
from helpers.paths import ROOT

from lorakit.run import Run
from lorakit.training.finetune import finetune

SETTINGS = dict(
    data=str(ROOT / "data/triage.jsonl"), max_rows=60, max_updates=3, max_length=96, max_new_tokens=2,
    quantization="none", precision="fp32", checkpoint_every=1, metrics=["loss"], learning_rate=1e-3,
    adapter_init="eva", rank=8,
)  # fmt: skip


@pytest.mark.slow
def test_a_run_ends_and_can_be_resumed(tmp_path, quick):
    whole = finetune(Run(name="whole", output_dir=tmp_path, **SETTINGS))
    assert whole.record["status"] == "done" and "reloaded" in whole.record["proof"]
    cut = Run(name="cut", output_dir=tmp_path, **SETTINGS)
    assert finetune(cut.with_(max_minutes=1e-9)).record["status"] == "stopped"
    adapters = [
        (f / "adapter/adapter_model.safetensors").read_bytes() for f in (whole, finetune(cut))
    ]
    assert adapters[0] == adapters[1]

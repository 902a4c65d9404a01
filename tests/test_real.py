"""A real pretrained model on real rows: what the numbers should be, where the public files are at hand."""

import pytest

import lorakit
from lorakit.record import read_lines


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_real_model_gets_better_on_rows_it_never_saw(real_data, quick, tmp_path, quantization):
    """stories260K on Alpaca's rows: 4.8 nats per target token before, 2.13 (NF4 2.15) after 150 updates of 8 rows."""
    folder = lorakit.finetune(lorakit.Run(
        model=str(real_data / "stories260K/hf"), data=str(real_data / "instruction_small/instruction-data.json"),
        output_dir=str(tmp_path), max_length=512, rank=8, alpha=16, learning_rate=1e-2, schedule="linear",
        max_updates=150,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
        quantization=quantization, precision="fp32", max_new_tokens=24, metrics=["token_accuracy"]))
    score = folder.scores["loss"]
    assert folder.record["status"] == "done"
    assert score["rows"] >= 100
    assert score["before"] == pytest.approx(4.8, abs=0.3)
    assert score["after"] <= 2.3
    assert score["interval"][1] < -2
    assert folder.scores["token_accuracy"]["interval"][0] > 0
    files = {a["where"].rsplit(":", 1)[0] for a in read_lines(folder / "answers.jsonl")}
    assert files == {"instruction-data.json"}

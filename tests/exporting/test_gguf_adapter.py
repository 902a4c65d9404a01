"""An adapter trained on a GGUF file, proven by llama.cpp on that very file."""

import json

import pytest
from helpers import gguf_files

import lorakit
from lorakit.runs.folder import read_lines

pytest.importorskip("xllamacpp")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("kind", ["q4_1"])
def test_the_adapter_is_proven_on_the_file_it_was_trained_on(kind, quick, here, tmp_path):
    file = gguf_files.write(tmp_path / "small.gguf", kind, TEMPLATE)
    lines = [{"prompt": f"where is {i}?", "completion": f"at {i}"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = lorakit.finetune(
        lorakit.Run(
            model=file,
            data=str(tmp_path / "rows.jsonl"),
            output_dir=str(tmp_path),
            engine="torch",
            precision="fp32",
            quantization="gguf",
            max_length=64,
            max_updates=20,
            max_new_tokens=8,
            learning_rate=3e-3,
            metrics=["loss"],
        )
    )
    assert folder.record["status"] == "done"
    losses = [line["loss"] for line in read_lines(folder / "history.jsonl") if "loss" in line]
    assert losses[-1] < losses[0] / 2
    out = lorakit.export(folder.path, "gguf", type="adapter")
    assert (out / "model.gguf").read_bytes() == (tmp_path / "small.gguf").read_bytes()
    proof = json.loads((out / "export.json").read_text())
    assert abs(proof["perplexity"]["added_nats"]) < 0.02
    assert any("the very file that was tuned" in note for note in proof["notes"])

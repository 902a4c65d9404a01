"""Tuned runs of shrunken models whose answers differ from prompt to prompt: 24 rows learnt by heart."""

import importlib
import json
from pathlib import Path
from unittest import mock

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import lorakit
from lorakit.models import reading
from lorakit.models import spec as models
from lorakit.notebook.rehearse import SPECIAL, fitted, template_of

FAMILIES = {
    "llama": "llama-3.2-1b",
    "mistral": "mistral-7b",
    "phi3": "phi-3-mini",
    "qwen3": "qwen3-0.6b",
    "gemma3": "gemma-3-270m",
    "gpt_oss": "gpt-oss-20b",
}
PLACES = "north south east west bridge harbour school market river station chapel mill".split()


def shrunken(family, folder, **changes):
    """A base of random weights of this architecture with lorakit's tokenizer and the family's chat template."""
    spec = models.known()[FAMILIES[family]]
    tokenizer, _ = reading.tokenizer("tiny")
    if template := template_of(spec):
        tokenizer.chat_template = template
        tokenizer.add_special_tokens(
            {"additional_special_tokens": sorted({*SPECIAL.findall(template)})}
        )
    config = fitted(models.shrunk(spec.config, spec.small), tokenizer)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **{**config, "initializer_range": 0.1, "max_position_embeddings": 512, **changes}
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def rows(folder, shift=0):
    """24 questions, each with an answer of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows{shift}.jsonl"
    numbers = [(i, PLACES[i % 12], PLACES[(5 * i + i // 12 + shift) % 12]) for i in range(24)]
    path.write_text(
        "".join(
            json.dumps({"prompt": f"{a} {i}?", "completion": f"go {b} then {a}"}) + "\n"
            for i, a, b in numbers
        )
    )
    return str(path)


def tuned_run(model, folder, name="run", shift=0, **changes):
    """A finished run, without the proof by a fresh process that other tests look at."""
    adapter = {} if changes.get("method") == "full" else {"rank": 8, "alpha": 32}
    run = lorakit.Run(
        **{
            **adapter,
            "name": name,
            "model": model,
            "data": rows(Path(folder), shift),
            "output_dir": str(folder),
            "engine": "torch",
            "max_updates": 90,
            "learning_rate": 1e-2,
            "precision": "fp32",
            "quantization": "none",
            "max_length": 200,
            "max_new_tokens": 12,
            "test_fraction": 0.0,
            "validation_fraction": 0.0,
            "global_batch_size": 8,
            "schedule": "linear",
            **changes,
        }
    )
    with mock.patch.object(
        importlib.import_module("lorakit.training.proof"), "repeated", return_value={}
    ):
        return lorakit.finetune(run)


def content(folder):
    """What the round trip of an export showed."""
    return json.loads((folder / "export.json").read_text())


def left(folder):
    """What stands in a folder."""
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []

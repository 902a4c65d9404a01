"""Real pretrained models on real public rows: `python bench/real.py [CASE …] --models FOLDER --data FOLDER`.

Trains the named cases (all of them by default) and prints rows of docs/results.md: the score before and after tuning,
the 95 % interval of the difference on the held-out rows, and what the most frequent answer scores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

DISASTER = {
    "data": "disaster_response/disaster_response_validation.csv",
    "columns": {"text": "message", "label": "aid_related"},
    "metrics": ["accuracy", "f1", "roc_auc"],
    "task": "classify_text",
    "max_length": 128,
    "test_fraction": 0.2,
}
SENTIMENT = {
    "data": "uci_sentiment/amazon_cells_labelled.txt",
    "format": {"tsv": {"header": False}},
    "columns": {"text": "1", "label": "2"},
    "metrics": ["accuracy", "f1", "roc_auc"],
    "task": "classify_text",
    "max_length": 128,
    "test_fraction": 0.2,
}
MINILM = {"model": "minilm-l6", "epochs": 2, "global_batch_size": 16, "learning_rate": 1e-3}
FULL = {"method": "full", "learning_rate": 5e-5}
SMOLLM = {
    "model": "smollm2-135m-instruct",
    "learning_rate": 1e-3,
    "epochs": 1,
    "global_batch_size": 8,
}

CASES: dict[str, dict[str, Any]] = {
    "minilm-disaster-lora": {**MINILM, **DISASTER},
    "minilm-disaster-full": {**MINILM, **DISASTER, **FULL},
    "minilm-sentiment-lora": {**MINILM, **SENTIMENT},
    "minilm-sentiment-full": {**MINILM, **SENTIMENT, **FULL},
    "whisper-digits": {
        "model": "whisper-tiny-en",
        "data": "fsdd",
        "columns": {"text": "{digit}"},
        "group_by": "speaker",
        "format": {"folder": {"options": {"sounds": {"names": "{digit}_{speaker}_{take}"}}}},
        "max_length": 64,
        "max_updates": 20,
        "validate_every": 10,
        "max_new_tokens": 8,
        "metrics": ["wer", "cer"],
    },
    "smollm2-instructions": {
        **SMOLLM,
        "data": "instruction_small/instruction-data.json",
        "max_length": 256,
        "learning_rate": 3e-4,
        "max_rows": 400,
        "validate_every": 0,
        "max_new_tokens": 32,
        "metrics": ["token_accuracy", "chrf"],
    },
    "smollm2-gsm8k": {
        **SMOLLM,
        "data": "gsm8k/train_first3000.jsonl",
        "max_length": 256,
        "max_rows": 300,
        "validate_every": 0,
        "metrics": [{"exact_match": {"pattern": r"####\s*(-?[\d.,]+)"}}],
        "max_new_tokens": 128,
    },
    "smollm2-disaster": {
        **SMOLLM,
        **DISASTER,
        "task": "chat",
        "metrics": ["accuracy", "f1"],
        "max_rows": 600,
        "validate_every": 0,
        "max_new_tokens": 4,
    },
    "gemma3-translation": {
        "model": "gemma-3-270m",
        "data": "tatoeba_pairs/tatoeba.deu-eng.deu",
        "format": {"parallel": {"target": "tatoeba.deu-eng.eng"}},
        "max_length": 128,
        "max_rows": 400,
        "learning_rate": 3e-4,
        "epochs": 1,
        "validate_every": 0,
        "max_new_tokens": 32,
        "metrics": ["chrf", "bleu"],
    },
}


def row(name: str, folder: Any, seconds: float) -> str:
    """One row for each metric: case, rows, before, after, difference with interval, the most frequent answer."""
    out = []
    for metric, score in folder.scores.items():
        low, high = score["interval"]
        between = "not defined" if low is None else f"{low:+.3f} … {high:+.3f}"
        common = score.get("most_frequent_answer", {}).get("score")
        majority = "–" if common is None else f"{common:.3f}"
        out.append(
            f"| {name} | {metric} | {score.get('groups', score['rows'])} | {score['before']:.3f} "
            f"| {score['after']:.3f} | {score['difference']:+.3f} ({between}) | {majority} "
            f"| {seconds:.0f} s |"
        )
    return "\n".join(out)


def main() -> None:
    import lorakit

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="all of them by default")
    parser.add_argument("--models", required=True, type=Path, help="made by models/fetch.py")
    parser.add_argument("--data", required=True, type=Path, help="the folder of public rows")
    parser.add_argument("--out", default="outputs/real", help="holds the runs' folders")
    given = parser.parse_args()
    for name in given.cases or CASES:
        settings = CASES[name]
        began = time.process_time()
        folder = lorakit.finetune(
            lorakit.Run(
                **{
                    "name": name,
                    "output_dir": given.out,
                    "quantization": "none",
                    **settings,
                    "model": str(given.models / settings["model"]),
                    "data": str(given.data / settings["data"]),
                }
            )
        )
        print(row(name, folder, time.process_time() - began), flush=True)


if __name__ == "__main__":
    main()

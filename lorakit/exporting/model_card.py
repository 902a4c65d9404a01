"""A model card in the hub's format, written from a run's record, and the explicit way to the hub.

Its metadata: https://huggingface.co/docs/hub/model-cards#model-card-metadata.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from lorakit import tasks
from lorakit.common import hub, registry
from lorakit.common.errors import LorakitError
from lorakit.common.files import atomic_write
from lorakit.data.sources import shares
from lorakit.exporting.messages import agreement_words, divergence_words
from lorakit.exporting.target import named as target_named
from lorakit.models import base_model, served
from lorakit.results import evidence, report
from lorakit.run import Run
from lorakit.runs.folder import Folder

# What models/ says of a licence, and the hub's word for it (https://huggingface.co/docs/hub/repositories-licenses).
LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Llama 3.2": "llama3.2", "Gemma": "gemma"}
SETTINGS = (
    "method",
    "quantization",
    "fake_quantization",
    "rank",
    "alpha",
    "dropout",
    "target_modules",
    "learning_rate",
    "schedule",
    "global_batch_size",
    "max_updates",
    "epochs",
    "max_length",
    "precision",
    "seed",
)
HUB_ID = r"[\w.\-]+/[\w.\-]+"


def card(path: str | os.PathLike, exported: dict[str, Any] | None = None) -> Any:
    """`huggingface_hub.ModelCard` of a run; `exported`: what `export.json` says of one of its exports."""
    from huggingface_hub import ModelCard

    folder = Folder.of(path)
    return ModelCard(
        f"---\n{metadata(folder, exported).to_yaml()}\n---\n\n{text(folder, exported)}"
    )


def write(path: str | os.PathLike, target: Path, exported: dict[str, Any] | None = None) -> Path:
    """README.md, where the hub looks for a card."""
    with atomic_write(target) as part:
        part.write_text(str(card(path, exported)), encoding="utf-8")
    return target


def metadata(folder: Folder, exported: dict[str, Any] | None) -> Any:
    """What the hub's search reads. A base or data without a hub id are named in the text alone."""
    from huggingface_hub import ModelCardData

    known, run = folder.record, Run.read(folder / "run.yaml")
    spec, kind = base_model.spec(run.model), target(run, exported)
    library = target_named(kind).library or kind
    licence = next(
        (ours for theirs, ours in LICENCES.items() if spec.licence.startswith(theirs)), "other"
    )
    more = {"license_name": "see-the-base-model"} if licence == "other" else {}
    return ModelCardData(
        model_name=folder.path.name,
        library_name=library,
        license=licence,
        **more,
        base_model=spec.path if _at_hub(spec.path) else None,
        datasets=[name for name in shares(run.data, run.replay) if _at_hub(name)] or None,
        pipeline_tag="text-generation" if known["data"]["task"] in ("chat", "text") else None,
        tags=["lorakit", *(["lora"] if run.method == "lora" else [])],
        eval_results=results(folder) or None,
    )


def target(run: Run, exported: dict[str, Any] | None) -> str:
    """Which file of export/ made what the card describes; of a run alone what is in its folder."""
    return exported["target"] if exported else "adapter" if run.method == "lora" else "merged"


def kind(task: str) -> str:
    """transformers' class that loads a model of a task; of words where it is not known yet."""
    task = "text" if task == "auto" else task
    return served.CLASSES[tasks.objective_of(task).HEAD, tasks.get(task).MEDIUM]


def _at_hub(name: str) -> bool:
    return re.fullmatch(HUB_ID, name) is not None and not Path(name).exists()


def results(folder: Folder) -> list[Any]:
    """Every score after training, as the hub's table of results."""
    from huggingface_hub import EvalResult

    data = folder.record["data"]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="custom",
            dataset_name=Path(data["file"]).name,
            dataset_split="test",
            metric_type=name,
            metric_value=round(score["after"], 6),
        )
        for name, score in folder.scores.items()
        if score["after"] is not None and math.isfinite(score["after"])
    ]


def text(folder: Folder, exported: dict[str, Any] | None) -> str:
    """For people: what it is, what it was trained on, what it was measured to do, what it is not known to do."""
    known, run, name = folder.record, Run.read(folder / "run.yaml"), folder.path.name
    spec, data, settings = base_model.spec(run.model), known["data"], run.model_dump()
    origin = spec.path if _at_hub(spec.path) else Path(run.model).name
    rows, scores = data["rows"], report.score_rows(folder.scores)
    lines = [
        f"# {name}",
        "",
        f"{known['method']} of {origin}. {report.verdict(folder.scores)[1]}",
        "",
    ]
    use = target_named(target(run, exported)).use.format(
        base=origin, name=name, kind=kind(run.task)
    )
    lines += [
        "```",
        use,
        "```",
        "",
        "## Data",
        "",
        f"{Path(data['file']).name}: "
        + ", ".join(f"{n} rows {what}" for what, n in rows.items())
        + ".",
        "Test rows were used for the scores alone; no row stands in two sets.",
        "",
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {k} | {settings[k]} |" for k in SETTINGS),
        "",
        "## Scores",
        "",
        "| metric | before | after | difference | 95 % interval | rows |",
        "|---|---|---|---|---|---|",
        *(
            f"| {s['metric']} | {s['before']} | {s['after']} | {s['difference']} | {s['interval']} | {s['rows']} |"
            for s in scores
        ),
        "",
    ]
    for found in evidence.kept(folder):
        lines += [f"## {registry.load('evidence', found.name).QUESTION}", ""]
        lines += [found.headline, "", *(f"- {line}" for line in found.limits), ""]
    if exported:
        lines += _export_section(exported)
    return "\n".join(lines + _last_sections(folder, spec.licence, exported))


def _export_section(exported: dict[str, Any]) -> list[str]:
    agreement, before = exported["agreement"], exported["perplexity"]
    shown = (
        f"{agreement['identical']} of {agreement['prompts']} rows have the tuned model's class; a probability "
        f"differs by at most {exported['probabilities']['largest_difference']:.1e}."
        if "probabilities" in exported
        else f"Perplexity on the run's rows {before['before']:.4f} before, {before['after']:.4f} after. "
        + ". ".join([*divergence_words(exported["divergence"]), agreement_words(agreement)])
        + "."
    )
    return [
        "## Export",
        "",
        f"{exported['target']}, {exported['type']}, {exported['bytes'] / 1e6:.1f} MB. " + shown,
        "",
        *(f"- {note}" for note in exported["notes"] if str(Path.home()) not in note),
        "",
    ]


def _last_sections(folder: Folder, licence: str, exported: dict[str, Any] | None) -> list[str]:
    """Limits, hashes and versions."""
    known = folder.record
    return [
        "## Limits",
        "",
        *(f"- {limit}" for limit in report.limits(known, folder.scores)),
        f"- Licence of the base: {licence}. What it must not be used for, this must not either.",
        "",
        "## Hashes (SHA-256)",
        "",
        "| what | |",
        "|---|---|",
        f"| data | `{known['data']['sha256']}` |",
        f"| base | `{known.get('base_sha256')}` |",
        *(
            f"| {file} | `{facts['sha256']}` |"
            for file, facts in (exported or {}).get("files", {}).items()
            if file.endswith((".safetensors", ".gguf", ".onnx"))
        ),
        "",
        "## Versions",
        "",
        ", ".join(f"{package} {version}" for package, version in known["versions"].items()),
        "",
    ]


def push(exported: str | os.PathLike, repository: str, *, private: bool = True) -> str:
    """Uploads an exported folder with its card, and returns its page. Never called by anything but a person.

    Raises `LorakitError` for what is no export, and when the hub refuses.
    """
    from huggingface_hub import HfApi

    folder = Path(exported)
    if not all((folder / name).is_file() for name in ("export.json", "README.md")):
        raise LorakitError(
            f"{folder}: is no exported folder; make one: lorakit export RUN_DIR --to adapter"
        )
    if not re.fullmatch(HUB_ID, repository):
        raise LorakitError(f"{repository}: a place at the hub is called owner/name")
    hub.find_token()
    content = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=["export.json"],
            commit_message=f"{content['target']} {content['type']}, exported and verified by lorakit",
        )
    except Exception as error:  # of the network, the hub, the token
        raise hub.refused(repository, "model", error) from None
    return hub.page(repository)

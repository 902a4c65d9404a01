"""Using a tuned model elsewhere: export, serve, upload, convert."""

from __future__ import annotations

from argparse import Namespace

from lorakit.commands import BASE_AT, RUN_DIR, argument, command

GROUP = "Using the model elsewhere"


@command(
    GROUP,
    "Writes a tuned model in another format, and proves that it answers the same.",
    RUN_DIR,
    argument("--to", required=True, metavar="FORMAT", help="adapter, merged, gguf, onnx or mlx"),
    argument("--type", metavar="TYPE", help="precision, e.g. bf16, q8_0, int8, 4bit"),
    argument("--out", metavar="PATH", help="the folder to write; else RUN_DIR/export/FORMAT-TYPE"),
    argument(
        "--also", nargs="+", metavar="RUN_DIR", help="runs on the same base; adds their adapters"
    ),
    argument(
        "--proof-seconds",
        type=float,
        metavar="SECONDS",
        help="time limit for asking the tuned model, and again for the export; default 20",
    ),
    BASE_AT,
    examples=("lorakit export outputs/run --to gguf --type q8_0",),
)
def export(options: Namespace) -> int:
    """The proof runs in a fresh process."""
    from lorakit.exporting.messages import words
    from lorakit.exporting.round_trip import export as to

    folder = to(
        options.run,
        options.to,
        options.out,
        type=options.type,
        also=options.also,
        model=options.model,
        proof_seconds=options.proof_seconds,
    )
    print(folder, *words(folder), sep="\n")
    return 0


@command(
    GROUP,
    "Serves a tuned model on this machine with OpenAI's API, to try it out.",
    RUN_DIR,
    argument("--port", type=int, default=8000, metavar="N", help="default 8000"),
    argument(
        "--form", action="store_true", help="enforce the answer format that `lorakit form` found"
    ),
    BASE_AT,
    examples=("lorakit serve outputs/run",),
)
def serve(options: Namespace) -> int:
    """Until it is stopped. After `lorakit trust` each answer also says whether to ask a person."""
    from lorakit.exporting.serve import serve as until_stopped

    return until_stopped(options.run, options.port, model=options.model, held=options.form)


@command(
    GROUP,
    "Uploads an exported folder with its model card to the hub.",
    argument("folder", metavar="EXPORT_DIR", help="a folder that `lorakit export` wrote"),
    argument("repository", metavar="OWNER/NAME", help="the repository at the hub"),
    argument("--public", action="store_true", help="visible to everybody; else private"),
    examples=("lorakit push outputs/run/export/merged-bf16 ada/my-model",),
)
def push(options: Namespace) -> int:
    """Needs a token of the hub in the environment."""
    from lorakit.exporting.model_card import push as upload

    print(upload(options.folder, options.repository, private=not options.public))
    return 0


@command(
    GROUP,
    "Converts an adapter or a base between PEFT, transformers and mlx-lm.",
    argument(
        "source", metavar="SOURCE", help="a folder, or a hub id; its files decide the direction"
    ),
    argument("target", metavar="TARGET", help="the folder to write"),
    argument("--four-bit", action="store_true", help="quantize a base for mlx-lm"),
    examples=("lorakit convert outputs/run/adapter mlx-adapter",),
)
def convert(options: Namespace) -> int:
    """The direction follows from the files."""
    from lorakit.engines.mlx.convert import convert as other_format

    print(other_format(options.source, options.target, four_bit=options.four_bit))
    return 0

"""One file for llama.cpp, Ollama and what is built on them: weights, tokenizer and chat template together.

`q4_k_m` is llama.cpp's own mixture; `q4_0` has all matrices in four bits, as `llama-quantize --pure` writes it.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.exporting.gguf.files import ADAPTER, MODEL, write_adapter
from lorakit.exporting.gguf.files import write as write_model
from lorakit.exporting.llama_cpp import INSTALL, NEEDED, LlamaCpp
from lorakit.exporting.modelfile import MODELFILE, modelfile
from lorakit.exporting.proof import Proof
from lorakit.exporting.source import Source
from lorakit.exporting.target import (
    EIGHT_BITS,
    EXACT,
    FOUR_BITS,
    SIXTEEN_BITS,
    ExportTarget,
    Runtime,
)
from lorakit.results.evidence.form import taught

GRAMMAR = "answers.gbnf"
# Bits per weight, scales included.
BITS = {"q8_0": 8.5, "f16": 16, "f32": 32, "q4_0": 4.5, "q4_k_m": 4.9, "adapter": 32}


def room(weights: int, type_: str) -> tuple[float, float]:
    """The merged model and what is written are in memory together."""
    return weights * BITS[type_] / 8 * 1.05, weights * (4 + BITS[type_] / 8)


def write(source: Source, folder: Path, type_: str) -> list[str]:
    if type_ == "adapter":
        return write_adapter(source, folder)
    notes = write_model(source.merged("fp32"), source, folder / MODEL, type_)
    text, more = modelfile(
        source.tokenizer,
        source.meta["stop_ids"],
        name=source.folder.path.resolve().name,
        weights=MODEL,
        chats=source.chats,
    )
    if form := taught(source.folder):
        (folder / GRAMMAR).write_text(form.gbnf(), encoding="utf-8")
        more = [
            *more,
            f"{GRAMMAR} holds answers to the form that was taught: llama-cli --grammar-file {GRAMMAR}",
        ]
    if text:
        (folder / MODELFILE).write_text(text, encoding="utf-8")
    return notes + more


def load(folder: Path, proof: Proof) -> Runtime:
    adapter = folder / ADAPTER
    return GgufRuntime(folder, adapter if adapter.is_file() else None, proof.longest + 8)


class GgufRuntime(LlamaCpp):
    """A folder exported here, in llama.cpp."""

    def __init__(self, folder: Path, adapter: Path | None, context: int):
        super().__init__(folder / MODEL, adapter, context=context)
        self.folder = folder

    def probabilities(self, inputs: Any) -> Any:
        raise LorakitError("llama.cpp runs no classifiers")


def facts(runtime: GgufRuntime, proof: Proof) -> dict[str, Any]:
    """Whether llama.cpp reads the same tokens and writes the same turns.

    Raises `LorakitError` for other tokens in the run's own rows, and for other turns.
    """
    read = [(text, own, runtime.tokenize(text) == ids) for text, ids, own in proof.texts]
    other = [text for text, own, alike in read if own and not alike]
    if other:
        raise LorakitError(
            f"llama.cpp reads {len(other)} of {sum(own for _, own, _ in read)} texts as other tokens than were "
            f"trained, e.g. {other[0][:60]!r}",
            cure="export it --to merged",
        )
    found: dict[str, Any] = {
        "texts_read_alike": sum(own for _, own, _ in read),
        "other_texts_read_alike": [
            sum(alike for _, own, alike in read if not own),
            sum(not own for _, own, _ in read),
        ],
    }
    if proof.conversations:
        found["conversations_written_alike"] = _written_alike(runtime.folder, proof)
    return found


def _written_alike(folder: Path, proof: Proof) -> int:
    """How many conversations llama.cpp's own template engine writes as training did: all, or it raises."""
    running = server(folder, 512)
    for messages, expected in proof.conversations:
        written = _apply_template(running, messages)
        # The server leaves out a first token that its tokenizer adds.
        if written not in (expected, expected.removeprefix(proof.first_token)):
            turns = " ".join(message["role"] for message in messages)
            raise LorakitError(
                f"llama.cpp writes the turns ({turns}) as {written!r}, and the run was trained on {expected!r}",
                cure="export it --to merged",
            )
    return len(proof.conversations)


def server(folder: Path, context: int = 4096) -> Any:
    """llama.cpp's server over a folder exported here, on a free port of loopback; keys and values in f32."""
    try:
        import xllamacpp
    except ImportError as error:
        raise LorakitError(f"{NEEDED} ({error})", cure=INSTALL) from None
    wanted = xllamacpp.CommonParams()
    wanted.model.path, wanted.n_ctx, wanted.n_parallel = str(folder / MODEL), context, 1
    wanted.verbosity = -1
    wanted.cache_type_k = wanted.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    wanted.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    wanted.hostnames, wanted.port = ["127.0.0.1"], 0
    wanted.swa_full = wanted.use_jinja = True
    wanted.warmup = wanted.cont_batching = False
    wanted.endpoint_metrics = True
    threads = int(os.environ.get("OMP_NUM_THREADS", -1))
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = threads
    if (folder / ADAPTER).is_file():
        wanted.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(folder / ADAPTER), 1.0)]
    running = xllamacpp.Server(wanted)
    running.handle_metrics()  # answered by its loop: destroyed before that has begun, it would wait for it forever
    return running


def _apply_template(running: Any, messages: list[dict[str, str]]) -> str:
    """How llama.cpp's server writes a conversation by the template inside the file."""
    call = urllib.request.Request(
        f"{running.listening_address}/apply-template",
        json.dumps({"messages": messages}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(call, timeout=600) as answer:
            return json.load(answer)["prompt"]
    except urllib.error.HTTPError as error:
        words = error.read().decode(errors="replace")[:200]
        raise LorakitError(f"llama.cpp refuses a conversation: {words}") from None


TARGET = ExportTarget(
    types={
        "q8_0": EIGHT_BITS,
        "f16": SIXTEEN_BITS,
        "f32": EXACT,
        "q4_0": FOUR_BITS,
        "q4_k_m": FOUR_BITS,
        "adapter": EXACT,
    },
    write=write,
    load=load,
    facts=facts,
    room=room,
    packages=("gguf", "xllamacpp"),
    weight_files=("*.gguf",),
    use="ollama create {name} -f Modelfile      # or: llama-server -m model.gguf",
    rounds_yarn=True,
    trained_for={"q4_0": "q4_0", "q8_0": "q8_0"},
)

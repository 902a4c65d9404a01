"""One file for llama.cpp, Ollama and what is built on them: weights, tokenizer and chat template together.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Names and keys come from the package `gguf`;
what a family needs beyond them stands in `FAMILIES`. `q4_k_m` is llama.cpp's own mixture; `q4_0` has all matrices in
four bits, as `llama-quantize --pure` writes it.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError
from lorakit.engines.mlx import convert
from lorakit.exporting.round_trip import DEFAULT_BOUNDS, Source, rounded
from lorakit.exporting.targets.merged import merged, untuned

USE = "ollama create {name} -f Modelfile      # or: llama-server -m model.gguf"
PACKAGES = ("gguf", "xllamacpp")  # what it writes with, and what it is run with to prove it
TYPES = ("q8_0", "f16", "f32", "q4_0", "q4_k_m", "adapter")
BOUNDS = {
    "f32": DEFAULT_BOUNDS["fp32"],
    "f16": DEFAULT_BOUNDS["16"],
    "q8_0": DEFAULT_BOUNDS["8"],
    "q4_0": DEFAULT_BOUNDS["4"],
    "q4_k_m": DEFAULT_BOUNDS["4"],
    "adapter": DEFAULT_BOUNDS["fp32"],
}
BITS = {
    "f32": 32,
    "f16": 16,
    "q8_0": 8.5,
    "q4_0": 4.5,
    "q4_k_m": 4.9,
    "adapter": 32,
}  # per weight, scales included
ROUNDED = {"q4_0": "q4_0", "q8_0": "q8_0"}
MODEL, ADAPTER, MODELFILE = "model.gguf", "adapter.gguf", "Modelfile"


@dataclass(frozen=True)
class Family:
    """How llama.cpp's model of a family differs from transformers'."""

    architecture: str  # in gguf.MODEL_ARCH
    interleaved: bool = False  # rotates neighbouring columns, where transformers rotates halves
    norm_plus_one: bool = False  # transformers multiplies by 1 + weight
    windows: int = (
        0  # every so many-th layer has no window, as llama.cpp has built in; 0: not looked at
    )


FAMILIES = {
    "llama": Family("LLAMA", interleaved=True),
    "mistral": Family("LLAMA", interleaved=True),
    "phi3": Family("PHI3"),
    "qwen3": Family("QWEN3"),
    "gemma3_text": Family("GEMMA3", norm_plus_one=True),
    "gpt_oss": Family("GPT_OSS", windows=2),
}
# How text is cut before pairs are merged: tokenizer.json's rules -> llama.cpp's name of the same.
GPT2 = "byte-level"
CUTS = {
    (GPT2,): "gpt-2",
    (r"\d", GPT2): "smollm",
    ("digits", GPT2): "smollm",
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    ): "llama-bpe",
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    ): "qwen2",
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ): "gpt-4o",
}


def room(weights: int, kind: str) -> tuple[float, float]:
    return weights * BITS[kind] / 8 * 1.05, weights * (
        4 + BITS[kind] / 8
    )  # the merged model, and what is written


def bounds(source: Source, kind: str) -> tuple[float, float]:
    # One that was trained for these very weights differs by the 8 bits of llama.cpp's activations alone.
    return rounded(
        source, BOUNDS["q8_0" if ROUNDED.get(kind) == source.run.fake_quantization else kind]
    )


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.gguf"))


def export(source: Source, folder: Path, kind: str) -> list[str]:
    if kind == "adapter":
        return adapter(source, folder)
    notes = write(merged(source, "fp32"), source, folder / MODEL, kind)
    (folder / MODELFILE).write_text(modelfile(source), encoding="utf-8")
    return notes


def family(config: Any) -> Family:
    """Raises `LorakitError` for an architecture that no line here describes, or layers that llama.cpp has not."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise LorakitError(
            f"{kind}: no line of FAMILIES in lorakit/exporting/targets/gguf.py describes it; there are "
            f"{', '.join(FAMILIES)}. llama.cpp's own convert_hf_to_gguf.py takes the merged model: "
            "lorakit export RUN_DIR --to merged"
        )
    found, layers = FAMILIES[kind], getattr(config, "layer_types", None)
    if (
        found.windows
        and layers
        and any(
            (name == "full_attention") != ((i + 1) % found.windows == 0)
            for i, name in enumerate(layers)
        )
    ):
        raise LorakitError(
            f"layer_types={layers}: llama.cpp's {kind} looks over everything in each "
            f"{found.windows}nd layer only, so this model cannot be written as GGUF"
        )
    return found


def write(model: Any, source: Source, path: Path, kind: str) -> list[str]:
    """The whole file."""
    import gguf

    config = model.config.get_text_config()
    form = family(config)
    architecture = gguf.MODEL_ARCH[form.architecture]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(source.folder.path.name)
    writer.add_file_type(gguf.LlamaFileType[{"f32": "ALL_F32"}.get(kind, f"MOSTLY_{kind.upper()}")])
    settings(writer, config)
    vocabulary(writer, source, config.vocab_size)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    small = []
    for name, tensor in tensors(model, config, form):
        stem, _, suffix = name.rpartition(".")
        known = names.get_name(stem)
        if known is None:
            raise LorakitError(
                f"'{name}' has no name in llama.cpp's {form.architecture}, so this model cannot be "
                "written as GGUF"
            )
        stored = stored_as(
            f"{known}.{suffix}", tensor, kind, config.num_hidden_layers, config.tie_word_embeddings
        )
        if kind.startswith("q") and tensor.ndim > 1 and tensor.shape[-1] % 32:
            small.append(name)
        writer.add_tensor(f"{known}.{suffix}", packed(tensor, stored), raw_dtype=stored)
    for name, tensor in frequencies(config):
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (
        [f"{len(small)} matrices stay in f16, since 32 does not divide their rows: {small[0]}, …"]
        if small
        else []
    )


def settings(writer: Any, config: Any) -> None:
    """Sizes, positions, windows and experts."""
    import gguf

    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = dict(getattr(config, "rope_parameters", None) or {})
    local = (rope.get("sliding_attention") or {}).get("rope_theta")
    rope = dict(rope.get("full_attention", rope))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    if local:
        writer.add_rope_freq_base_swa(local)
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
    elif config.model_type == "phi3":
        writer.add_sliding_window(0)
    if config.model_type == "gemma3_text":
        kinds = config.layer_types
        writer.add_sliding_window_pattern(
            kinds.index("full_attention") + 1 if "full_attention" in kinds else 10**6
        )
    if experts := getattr(config, "num_local_experts", None):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.intermediate_size)
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
    if kind == "longrope":
        first = rope["original_max_position_embeddings"]
        more = config.max_position_embeddings / first
        writer.add_rope_scaling_orig_ctx_len(first)
        writer.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(more) / math.log(first)) if more > 1 else 1.0
        )
    if kind not in ("default", "linear", "yarn", "longrope", "llama3"):
        raise LorakitError(
            f"rope_type={kind}: llama.cpp scales positions otherwise, so this model cannot be written"
        )


def frequencies(config: Any) -> Iterator[tuple[str, np.ndarray]]:
    """What llama.cpp divides each rotary frequency by, where it does not follow from one number."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = dict(getattr(config, "rope_parameters", None) or {})
    if rope.get("rope_type") == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = rope["rope_theta"] ** -(np.arange(len(scaled)) / len(scaled))
        yield "rope_freqs", (plain / scaled.double().numpy()).astype(np.float32)
    if rope.get("rope_type") == "longrope":
        yield "rope_factors_long", np.asarray(rope["long_factor"], dtype=np.float32)
        yield "rope_factors_short", np.asarray(rope["short_factor"], dtype=np.float32)


def tensors(model: Any, config: Any, form: Family) -> Iterator[tuple[str, np.ndarray]]:
    """Names as transformers gives them, values as llama.cpp wants them."""
    weights = {n: t for n, t in model.state_dict().items() if not n.endswith("inv_freq")}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    weights = convert.experts_to_mlx(weights)  # stacks of (E, out, in), gate and up apart
    for name, tensor in weights.items():
        name = (
            name.removesuffix(".weight") + ".weight"
            if name.endswith((".sinks", ".weight"))
            else name
        )
        value = tensor.detach().float().contiguous().numpy()
        if form.norm_plus_one and name.endswith("norm.weight"):
            value = (value + 1) * (query_scale(config) if name.endswith("q_norm.weight") else 1)
        if form.interleaved and (heads := rotated(name, config)):
            value = interleave(value, heads)
        yield name, np.ascontiguousarray(value)


def query_scale(config: Any) -> float:
    """Gemma divides scores by the root of `query_pre_attn_scalar`, llama.cpp by that of a width (27B: of heads)."""
    width = (
        config.hidden_size / config.num_attention_heads
        if config.num_hidden_layers == 62
        else config.head_dim
    )
    return math.sqrt(width / config.query_pre_attn_scalar)


def rotated(name: str, config: Any) -> int:
    """How many heads a tensor holds that is rotated by position; 0 for others."""
    kind = name.split(".")[-2] if "." in name else ""
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(kind, 0)


def interleave(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (x1 … xn, y1 … yn) to neighbours (x1, y1, …, xn, yn)."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


# The tokenizer


def vocabulary(writer: Any, source: Source, rows: int) -> None:
    """Tokens with their kinds, what merges them, special ones, and the chat template."""
    import gguf

    tokenizer = source.tokenizer
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model, kinds = content["model"], gguf.TokenType
    texts, types = [f"[PAD{i}]" for i in range(rows)], [kinds.UNUSED] * rows
    for text, number in tokenizer.get_vocab().items():
        texts[number], types[number] = text, kinds.NORMAL
    for number, token in tokenizer.added_tokens_decoder.items():
        types[number] = kinds.CONTROL if token.special else kinds.USER_DEFINED
    scores = pieces(content, texts, types) if sentencepiece(model) else None
    writer.add_tokenizer_model({"Unigram": "t5"}.get(model["type"], "llama" if scores else "gpt2"))
    if not scores:
        writer.add_tokenizer_pre(cut(content))
        writer.add_token_merges(
            [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
        )
    elif model["type"] == "BPE":
        writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    if scores:
        writer.add_token_scores(scores)
        writer.add_add_space_prefix(tokenizer.tokenize("a")[0].startswith("▁"))
    for role in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{role}_token_id")) is not None:
            getattr(writer, f"add_{role}_token_id")(number)
    stops = source.meta["stop_ids"]
    if source.chats and stops:
        writer.add_eot_token_id(stops[0])
    writer.add_add_bos_token(begins(tokenizer))
    writer.add_add_eos_token(False)
    if (
        template := tokenizer.chat_template
    ):  # llama.cpp takes token 11 for the beginning where there is none
        without = (
            "{%- set bos_token = '' -%}"
            if tokenizer.bos_token is None and "bos_token" in template
            else ""
        )
        writer.add_chat_template(without + template)


def begins(tokenizer: Any) -> bool:
    """Whether it puts its first token before every text."""
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def sentencepiece(model: dict[str, Any]) -> bool:
    return model["type"] == "Unigram" or bool(model.get("byte_fallback"))


def pieces(content: dict[str, Any], texts: list[str], types: list[int]) -> list[float]:
    """Scores: a Unigram's own; of merged pairs the earlier merge ranks higher. Marks the bytes and the unknown."""
    import gguf

    model = content["model"]
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]] + [0.0] * (len(texts) - len(model["vocab"]))
        types[model["unk_id"]] = gguf.TokenType.UNKNOWN
    else:
        ranks: dict[str, int] = {}
        for rank, pair in enumerate(model["merges"]):
            ranks.setdefault("".join(pair if isinstance(pair, list) else pair.split(" ")), rank)
        scores = [-float(ranks[text]) if text in ranks else -1e6 for text in texts]
        if model.get("unk_token") in texts:
            types[texts.index(model["unk_token"])] = gguf.TokenType.UNKNOWN
    for number, text in enumerate(texts):
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[number] = gguf.TokenType.BYTE
    return scores


def cut(content: dict[str, Any]) -> str:
    """llama.cpp's name of how this tokenizer cuts text. Raises `LorakitError` where it has none."""
    found = content["pre_tokenizer"] or {}
    steps = found.get("pretokenizers", [found])
    rules = []
    for step in steps:
        if step.get("type") == "Split":
            rules.append(step["pattern"].get("Regex") or step["pattern"].get("String"))
        elif step.get("type") == "Digits":
            rules.append("digits")
        elif step.get("type") == "ByteLevel" and step.get("use_regex", True):
            rules.append(GPT2)
    if not content["model"]["merges"]:
        return "gpt-2"  # nothing is merged, wherever it is cut
    if tuple(rules) not in CUTS:
        raise LorakitError(
            f"the tokenizer cuts text by {rules}, which no line of CUTS in lorakit/exporting/targets/gguf.py "
            "names; llama.cpp would read other tokens than were trained"
        )
    return CUTS[tuple(rules)]


def modelfile(source: Source) -> str:
    """For `ollama create NAME -f Modelfile`: the turns as the chat template writes them."""
    stops = [source.tokenizer.convert_ids_to_tokens(i) for i in source.meta["stop_ids"]]
    lines = [f"# ollama create {source.folder.path.name} -f {MODELFILE}", f"FROM ./{MODEL}"]
    if source.chats:
        turns = [{"role": "user", "content": "{{ .Prompt }}"}]
        plain = rendered(source.tokenizer, turns)
        try:
            with_system = rendered(
                source.tokenizer, [{"role": "system", "content": "{{ .System }}"}, *turns]
            )
            plain = "{{ if .System }}" + with_system + "{{ else }}" + plain + "{{ end }}"
        except Exception:  # a template may refuse the role
            pass
        lines.append(f'TEMPLATE """{plain}{{{{ .Response }}}}"""')
    lines += [f'PARAMETER stop "{text}"' for text in stops] + ["PARAMETER temperature 0"]
    return "\n".join(lines) + "\n"


def rendered(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    """The turns as the template writes them, without a first token that Ollama puts there itself."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text.removeprefix(tokenizer.bos_token) if begins(tokenizer) else text


# Bits


def stored_as(name: str, tensor: np.ndarray, kind: str, layers: int, tied: bool) -> Any:
    """The type of one tensor. Vectors and what chooses experts stay in f32; rows that no block fills take a type that
    they do fill."""
    import gguf

    types = gguf.GGMLQuantizationType
    if tensor.ndim < 2 or kind == "f32" or name.endswith(".bias") or "ffn_gate_inp" in name:
        return types.F32
    wanted = types[mixed(name, layers, tied) if kind == "q4_k_m" else kind.upper()]
    if tensor.shape[-1] % 256:
        wanted = {types.Q4_K: types.Q5_0, types.Q5_K: types.Q5_1, types.Q6_K: types.Q8_0}.get(
            wanted, wanted
        )
    return types.F16 if kind.startswith("q") and tensor.shape[-1] % 32 else wanted


def mixed(name: str, layers: int, tied: bool) -> str:
    """llama.cpp's rule of q4_k_m (`llama-quant.cpp`, without its exceptions for 70B and for 8 experts): more bits for
    the head, and for values and `down` in half of the layers."""
    if name.startswith("output.") or (tied and name == "token_embd.weight"):
        return "Q6_K"
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    first = layers // 8
    more = layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2
    return (
        "Q6_K"
        if more and any(part in name for part in ("attn_v.", "attn_qkv.", "ffn_down"))
        else "Q4_K"
    )


def packed(tensor: np.ndarray, wanted: Any) -> np.ndarray:
    """The bytes of a tensor in a type: by the package `gguf`, K-types by llama.cpp's own quantizer.

    Raises `LorakitError` where the installed llama.cpp has none.
    """
    import gguf

    if not wanted.name.endswith("_K"):
        return gguf.quants.quantize(tensor, wanted)
    try:
        import xllamacpp

        quantize = ctypes.CDLL(xllamacpp.xllamacpp.__file__).ggml_quantize_chunk
    except (ImportError, OSError, AttributeError):
        raise LorakitError(
            "q4_k_m needs llama.cpp's own quantizer: pip install xllamacpp, or take --type q4_0"
        ) from None
    quantize.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    quantize.restype = ctypes.c_size_t
    width = tensor.shape[-1]
    block, stored = gguf.GGML_QUANT_SIZES[wanted]
    rows = np.ascontiguousarray(tensor.reshape(-1, width), dtype=np.float32)
    out = np.empty((len(rows), width // block * stored), dtype=np.uint8)
    quantize(int(wanted), rows.ctypes.data, out.ctypes.data, 0, len(rows), width, None)
    return out.reshape(*tensor.shape[:-1], -1)


# The adapter alone


def adapter(source: Source, folder: Path) -> list[str]:
    """`adapter.gguf` for `llama-server --lora`, and the base it belongs to beside it, in f32."""
    import gguf

    if source.run.method != "lora":
        raise LorakitError(
            f"{source.folder.path}: method={source.run.method} has no adapter; take another --type"
        )
    settings_, layers = convert.read_peft(source.saved)
    model = untuned(source, "fp32")
    config = model.config.get_text_config()
    form = family(config)
    architecture = gguf.MODEL_ARCH[form.architecture]
    notes = write(model, source, folder / MODEL, "f32")
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(folder / ADAPTER, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, convert.scale(settings_) * settings_["r"])
    for layer, pair in layers.items():
        down, up = pair["A"].astype(np.float32), pair["B"].astype(np.float32)
        if form.interleaved and (heads := rotated(f"{layer}.weight", config)):
            up = interleave(up, heads)
        for letter, tensor in (("a", down), ("b", up)):
            writer.add_tensor(
                f"{names.get_name(layer)}.weight.lora_{letter}", np.ascontiguousarray(tensor)
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [*notes, f"{MODEL} is the base, {ADAPTER} goes onto it"]


# llama.cpp


def load(folder: Path, source: Source) -> LlamaCpp:
    return LlamaCpp(folder, source)


def server(folder: Path, context: int = 4096) -> Any:
    """llama.cpp's server over a folder exported here, on a free port of loopback; keys and values in f32."""
    import xllamacpp

    chosen = xllamacpp.CommonParams()
    chosen.model.path, chosen.n_ctx, chosen.n_parallel, chosen.verbosity = (
        str(folder / MODEL),
        context,
        1,
        -1,
    )
    chosen.cache_type_k = chosen.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    chosen.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    chosen.hostnames, chosen.port = ["127.0.0.1"], 0
    chosen.swa_full, chosen.use_jinja, chosen.warmup, chosen.cont_batching = (
        True,
        True,
        False,
        False,
    )
    chosen.cpuparams.n_threads = chosen.cpuparams_batch.n_threads = int(
        os.environ.get("OMP_NUM_THREADS", -1)
    )
    if (folder / ADAPTER).is_file():
        chosen.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(folder / ADAPTER), 1.0)]
    return xllamacpp.Server(chosen)


class LlamaCpp:
    """The file in llama.cpp itself, asked with token ids."""

    def __init__(self, folder: Path, source: Source):
        self.source = source
        self.server = server(folder, max(512, source.longest + source.run.max_new_tokens + 8))

    def _ask(self, request: dict[str, Any], path: str = "completion") -> dict[str, Any]:
        content = {"cache_prompt": True, "temperature": 0, "return_tokens": True, **request}
        call = urllib.request.Request(
            f"{self.server.listening_address}/{path}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(call, timeout=600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise LorakitError(
                f"llama.cpp: {error.read().decode(errors='replace')[:200]}"
            ) from None

    def generate(self, prompt: list[int], max_new_tokens: int, stop_ids: list[int]) -> list[int]:
        tokens = self._ask({"prompt": prompt, "n_predict": max_new_tokens})["tokens"]
        return tokens[: next((i for i, t in enumerate(tokens) if t in stop_ids), len(tokens))]

    def nats(self, ids: list[int], targets: list[bool]) -> float:
        """Each target is made the one to sample; its probability is said before that bias."""
        total = 0.0
        for place in (i for i, on in enumerate(targets) if on):
            said = self._ask(
                {
                    "prompt": ids[:place],
                    "n_predict": 1,
                    "n_probs": 1,
                    "temperature": -1,
                    "logit_bias": [[ids[place], 1e6]],
                }
            )
            total -= said["completion_probabilities"][0]["logprob"]
        return total

    def facts(self) -> dict[str, Any]:
        """Whether llama.cpp reads the same tokens and writes the same turns. Raises `LorakitError` for other tokens."""
        tokenizer = self.source.tokenizer
        texts = [tokenizer.decode(row["ids"].tolist()) for row in self.source.rows]
        read = [
            self._ask({"content": t, "add_special": False, "parse_special": True}, "tokenize")[
                "tokens"
            ]
            for t in texts
        ]
        expected = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
        other = [t for t, a, b in zip(texts, read, expected, strict=True) if a != b]
        if other:
            raise LorakitError(
                f"llama.cpp reads {len(other)} of {len(texts)} texts as other tokens than were trained, "
                f"e.g. {other[0][:60]!r}"
            )
        if not self.source.chats:
            return {"texts_read_alike": len(texts)}
        turns = [{"role": "user", "content": "Is the road open?"}]
        mine = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return {
            "texts_read_alike": len(texts),
            "chat_template_alike": self._ask({"messages": turns}, "apply-template")["prompt"]
            == mine,
        }

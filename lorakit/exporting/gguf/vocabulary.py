"""Tokens, merges and the chat template of a tokenizer, as llama.cpp reads them."""

from __future__ import annotations

import json
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.exporting.modelfile import begins_every_text
from lorakit.exporting.source import Source

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


def vocabulary(writer: Any, source: Source, rows: int) -> None:
    """Tokens with their kinds, what merges them, special ones, and the chat template."""
    import gguf

    tokenizer = source.tokenizer
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model, kinds = content["model"], gguf.TokenType
    texts = [f"[PAD{i}]" for i in range(rows)]
    types: list[int] = [kinds.UNUSED] * rows
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
    writer.add_add_bos_token(begins_every_text(tokenizer))
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
            f"the tokenizer cuts text by {rules}, which no line of CUTS in lorakit/exporting/gguf/vocabulary.py "
            "names; llama.cpp would read other tokens than were trained"
        )
    return CUTS[tuple(rules)]

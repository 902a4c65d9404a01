"""Whisper (arXiv 2212.04356): an encoder that hears 30 seconds, a decoder that writes what was said."""

from lorakit.models.spec import Spec

TOKENS = (
    "<|startoftranscript|>",
    "<|en|>",
    "<|sw|>",
    "<|fr|>",
    "<|es|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)


def reader(tokenizer, config):
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

    vocabulary, merges = pairs(tokenizer)
    ours = WhisperTokenizer(vocab=vocabulary | {"<|endoftext|>": len(vocabulary)}, merges=merges)
    ours.add_tokens(list(TOKENS), special_tokens=True)
    ours.model_max_length = config["max_target_positions"]
    ids = ours.convert_tokens_to_ids
    config |= {
        "vocab_size": len(ours),
        "decoder_start_token_id": ids(TOKENS[0]),
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
        **{f"{name}_token_id": ids("<|endoftext|>") for name in ("bos", "eos", "pad")},
    }
    seconds = config["max_source_positions"] // 50  # two frames of 10 ms make a position
    return WhisperProcessor(
        WhisperFeatureExtractor(feature_size=config["num_mel_bins"], chunk_length=seconds), ours
    )


def pairs(tokenizer):
    """(vocabulary, merges) of a byte-level BPE tokenizer, without what was added to it."""
    import json

    kept = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["content"] for token in kept["added_tokens"]}
    names = [
        n
        for n, _ in sorted(kept["model"]["vocab"].items(), key=lambda item: item[1])
        if n not in added
    ]
    merges = [
        tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in kept["model"]["merges"]
    ]
    return {name: i for i, name in enumerate(names)}, merges


SPEC = Spec(
    name="whisper-{size}",
    path="openai/whisper-{size}",
    licence="Apache-2.0",
    target_modules=("q_proj", "v_proj"),
    source="https://huggingface.co/openai/whisper-small",
    config={
        "model_type": "whisper",
        "vocab_size": 51865,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
        "max_target_positions": 448,
    },
    small={
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "num_mel_bins": 40,
        "max_source_positions": 250,
        "max_target_positions": 128,
    },
    reader=reader,
    sizes={
        name: {
            "d_model": wide,
            "encoder_layers": layers,
            "decoder_layers": layers,
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
            "encoder_ffn_dim": 4 * wide,
            "decoder_ffn_dim": 4 * wide,
        }
        for name, wide, layers, heads in (
            ("tiny", 384, 4, 6),
            ("base", 512, 6, 8),
            ("small", 768, 12, 12),
            ("medium", 1024, 24, 16),
        )
    },
)

"""The sizes, positions, windows and experts that llama.cpp reads from the head of a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError


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

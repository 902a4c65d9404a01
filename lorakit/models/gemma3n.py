"""Gemma 3n, its language model: inputs per layer, AltUp, LAuReL, sparse first layers, last layers that share keys.

The file at the hub also holds towers for images and sound (983,281,504 weights, built by timm); text never reaches
them, and a bare `k_proj` would match the one for sound. AltUp clamps its weights in place when it trains, which a
quantized one refuses.
"""

from lorakit.models import Spec

SPEC = Spec(
    name="gemma-3n-{size}",
    path="google/gemma-3n-{size}-it",
    licence="Gemma Terms of Use (accepted on the model's page)",
    target_modules=r"model\.(language_model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    unquantized=("lm_head", r".*\.altup"),
    fp16=False,
    source="https://huggingface.co/google/gemma-3n-E4B-it, text_config",
    template="gemma3",
    config={
        "model_type": "gemma3n_text", "vocab_size": 262400, "vocab_size_per_layer_input": 262144, "hidden_size": 2048,
        "hidden_size_per_layer_input": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
        "max_position_embeddings": 32768, "sliding_window": 512, "altup_num_inputs": 4, "laurel_rank": 64,
    },
    small={
        "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 16, "sliding_window": 64,
        "hidden_size_per_layer_input": 16, "laurel_rank": 8, "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
    },
    sizes={
        "E2B": {"num_hidden_layers": 30, "intermediate_size": 8192, "num_kv_shared_layers": 10},
        "E4B": {"num_hidden_layers": 35, "intermediate_size": 16384, "num_kv_shared_layers": 15},
    },
)

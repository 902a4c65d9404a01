"""Gemma 3 for text: five layers that look back over a window, then one over everything (arXiv 2503.19786).

Activations leave fp16's range. Adapters keep to the language model: `q_proj` alone would also match an image tower.
"""

from lorakit.models.spec import Spec

SPEC = Spec(
    name="gemma-3-{size}",
    path="google/gemma-3-{size}-it",
    licence="Gemma Terms of Use (accepted on the model's page)",
    target_modules=r"model\.(language_model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    fp16=False,
    source="https://huggingface.co/google/gemma-3-1b-it",
    template="gemma3",
    config={
        "model_type": "gemma3_text",
        "vocab_size": 262144,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
    },
    small={
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    sizes={
        "270m": {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18},
        "1b": {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26},
    },
)

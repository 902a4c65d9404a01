"""gpt-oss-20b: 32 experts a layer, 4 of them per token, attention with sinks, every other layer over a window of 128.

Activations leave fp16's range. Adapters go to attention: the experts are stacked matrices, not linear layers. The hub's
experts are in MXFP4, which transformers loads as it is or as bf16 (42 GB), never as NF4.
"""

from lorakit.models.spec import Spec

SPEC = Spec(
    name="gpt-oss-20b",
    path="openai/gpt-oss-20b",
    licence="Apache-2.0",
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
    stored="mxfp4",
    fp16=False,
    source="https://huggingface.co/openai/gpt-oss-20b",
    template="gptoss",
    config={
        "model_type": "gpt_oss",
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "max_position_embeddings": 131072,
        "sliding_window": 128,
    },
    small={
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    },
)

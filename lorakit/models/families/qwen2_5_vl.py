"""Qwen2.5-VL (arXiv 2502.13923): a tower for pictures of any size, positions in three dimensions."""

from lorakit.models.spec import Spec, image_processor, name_tokens

TOKENS = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
AROUND = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}


def reader(tokenizer, config):
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    name_tokens(tokenizer, TOKENS | {f"{name}_token": token for name, token in AROUND.items()})
    config["text_config"]["vocab_size"] = len(tokenizer)
    config |= {
        "image_token_id": tokenizer.image_token_id,
        "video_token_id": tokenizer.video_token_id,
        **{
            f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
            for name, token in AROUND.items()
        },
    }
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}  # pixels in all
    images = image_processor("Qwen2VLImageProcessor", size=size, patch_size=14, merge_size=2)
    return Qwen2_5_VLProcessor(
        images, tokenizer, Qwen2VLVideoProcessor(), chat_template=tokenizer.chat_template
    )


SPEC = Spec(
    name="qwen2.5-vl-{size}",
    path="Qwen/Qwen2.5-VL-{size}-Instruct",
    licence="Qwen Research License (3B), Apache-2.0 (7B)",
    target_modules=r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    source="https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct",
    template="qwen2_5_vl",
    config={
        "model_type": "qwen2_5_vl",
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": 151936,
            "max_position_embeddings": 128000,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
        },
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "depth": 32,
            "num_heads": 16,
            "patch_size": 14,
        },
    },
    small={
        "text_config": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "layer_types": ["full_attention"] * 2,
            "max_window_layers": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
            },
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "depth": 1,
            "num_heads": 2,
            "fullatt_block_indexes": [0],
            "out_hidden_size": 128,
        },
    },
    reader=reader,
    sizes={
        "3B": {
            "tie_word_embeddings": True,
            "text_config": {
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
            },
            "vision_config": {"out_hidden_size": 2048},
        },
        "7B": {
            "tie_word_embeddings": False,
            "text_config": {
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
            },
            "vision_config": {"out_hidden_size": 3584},
        },
    },
)

"""Gemma 3n: inputs per layer, AltUp, LAuReL, sparse first layers, last layers that share keys; it sees and hears.

Its towers for images (MobileNetV5, built by timm) and sound hold 983,281,504 weights; text never reaches them. They
stay frozen and, because of BatchNorm, out of training mode; a bare `k_proj` would match the one for sound. AltUp clamps
its weights in place when it trains, which a quantized one refuses.
"""

from lorakit.models.spec import Spec, image_processor, name_tokens

# The last ids belong to the towers: first those of pictures, then those of sound.
PICTURE = {"eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
SOUND = {"eoa_token": "<end_of_audio>", "audio_token": "<audio_soft_token>"}


def reader(tokenizer, config):
    from transformers import Gemma3nAudioFeatureExtractor, Gemma3nProcessor

    name_tokens(tokenizer, {"boi_token": "<start_of_image>", "boa_token": "<start_of_audio>"})
    picture = len(tokenizer)
    name_tokens(tokenizer, PICTURE)
    sound = len(tokenizer)
    name_tokens(tokenizer, SOUND)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<start_of_image>", "<image_soft_token>"
    )
    config |= {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
        for name in ("boi", "eoi", "image", "boa", "eoa", "audio")
    }
    config["text_config"] |= {"vocab_size": len(tokenizer), "vocab_size_per_layer_input": picture}
    config["vision_config"] |= {"vocab_offset": picture, "vocab_size": sound - picture}
    config["audio_config"] |= {"vocab_offset": sound, "vocab_size": len(tokenizer) - sound}
    images = image_processor(
        "SiglipImageProcessor", size={"height": 64, "width": 64}, do_normalize=False
    )
    return Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(),
        images,
        tokenizer,
        tokenizer.chat_template,
        image_seq_length=config["vision_soft_tokens_per_image"],
    )


SPEC = Spec(
    name="gemma-3n-{size}",
    path="google/gemma-3n-{size}-it",
    licence="Gemma Terms of Use (accepted on the model's page)",
    target_modules=r"model\.(language_model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    unquantized=("lm_head", r".*\.altup"),
    fp16=False,
    source="https://huggingface.co/google/gemma-3n-E4B-it",
    template="gemma3",
    config={
        "model_type": "gemma3n",
        "vision_soft_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3n_text",
            "vocab_size": 262400,
            "vocab_size_per_layer_input": 262144,
            "hidden_size": 2048,
            "hidden_size_per_layer_input": 256,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "max_position_embeddings": 32768,
            "sliding_window": 512,
            "altup_num_inputs": 4,
            "laurel_rank": 64,
        },
        "vision_config": {"model_type": "gemma3n_vision"},
        "audio_config": {"model_type": "gemma3n_audio"},
    },
    small={
        "vision_soft_tokens_per_image": 4,
        "text_config": {
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "sliding_window": 64,
            "hidden_size_per_layer_input": 16,
            "laurel_rank": 8,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        },
        "vision_config": {"model_args": {"channel_multiplier": 0.1, "msfa_output_resolution": 2}},
        "audio_config": {
            "hidden_size": 32,
            "conf_num_hidden_layers": 1,
            "conf_num_attention_heads": 2,
            "sscp_conv_channel_size": [8, 4],
        },
    },
    reader=reader,
    sizes={
        "E2B": {
            "text_config": {
                "num_hidden_layers": 30,
                "intermediate_size": 8192,
                "num_kv_shared_layers": 10,
            }
        },
        "E4B": {
            "text_config": {
                "num_hidden_layers": 35,
                "intermediate_size": 16384,
                "num_kv_shared_layers": 15,
            }
        },
    },
)

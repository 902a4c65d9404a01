"""SmolVLM (arXiv 2504.05299): SigLIP, whose patches are shuffled into fewer tokens, before a small Llama."""

from lorakit.models.spec import Spec, image_processor, name_tokens

TOKENS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
    "video_token": "<video>",
}


def reader(tokenizer, config):
    from transformers import SmolVLMProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    name_tokens(tokenizer, TOKENS)
    config["text_config"]["vocab_size"] = len(tokenizer)
    config["image_token_id"] = tokenizer.image_token_id
    side = config["vision_config"]["image_size"]
    images = image_processor(
        "SmolVLMImageProcessor",
        size={"longest_edge": side},
        max_image_size={"longest_edge": side},
        do_image_splitting=False,
    )
    many = (side // config["vision_config"]["patch_size"]) ** 2 // config["scale_factor"] ** 2
    return SmolVLMProcessor(
        images,
        tokenizer,
        SmolVLMVideoProcessor(),
        image_seq_len=many,
        chat_template=tokenizer.chat_template,
    )


SPEC = Spec(
    name="smolvlm-{size}",
    path="HuggingFaceTB/SmolVLM-{size}-Instruct",
    licence="Apache-2.0",
    target_modules=r".*text_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    source="https://huggingface.co/HuggingFaceTB/SmolVLM-256M-Instruct",
    template="smolvlm",
    config={
        "model_type": "smolvlm",
        "scale_factor": 4,
        "text_config": {
            "model_type": "llama",
            "vocab_size": 49280,
            "max_position_embeddings": 8192,
        },
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
    },
    small={
        "scale_factor": 2,
        "text_config": {
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "head_dim": 24,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        },
    },
    reader=reader,
    sizes={
        "256M": {
            "text_config": {
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
            }
        },
        "500M": {
            "text_config": {
                "hidden_size": 960,
                "intermediate_size": 2560,
                "num_hidden_layers": 32,
                "num_attention_heads": 15,
                "num_key_value_heads": 5,
            }
        },
    },
)

"""Gemma 3 that also sees images: the same language model beside a SigLIP tower."""

from dataclasses import replace

from lorakit.models.families.gemma3 import SPEC as TEXT
from lorakit.models.spec import image_processor, name_tokens

TOKENS = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}


def reader(tokenizer, config):
    from transformers import Gemma3Processor

    name_tokens(tokenizer, TOKENS)
    config |= {
        "image_token_index": tokenizer.image_token_id,
        "boi_token_index": tokenizer.boi_token_id,
        "eoi_token_index": tokenizer.eoi_token_id,
    }
    config["text_config"]["vocab_size"] = len(tokenizer)
    side = config["vision_config"]["image_size"]
    return Gemma3Processor(
        image_processor("Gemma3ImageProcessor", size={"height": side, "width": side}),
        tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=config["mm_tokens_per_image"],
    )


SPEC = replace(
    TEXT,
    source="https://huggingface.co/google/gemma-3-4b-it",
    config={
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": 262208,
            "head_dim": 256,
            "sliding_window": 1024,
            "max_position_embeddings": 131072,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
    },
    small={
        "text_config": TEXT.small,
        "mm_tokens_per_image": 4,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
        },
    },
    reader=reader,
    sizes={
        "4b": {
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
            }
        },
    },
)

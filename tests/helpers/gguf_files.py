"""GGUF files of tiny models, written from transformers' models with the package `gguf`."""

from pathlib import Path

import gguf
import numpy as np
import torch


def write(path: Path, kind: str = "q8_0", template: str = "") -> str:
    """A Llama of two layers, 256 wide, every linear layer stored as `kind`, with a byte-level tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.05,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(300)
    vocabulary(writer, template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        stem, _, suffix = name.rpartition(".")
        value = tensor.numpy()
        heads = {"q_proj": 4, "k_proj": 2}.get(stem.rpartition(".")[2])
        if heads:  # llama.cpp rotates neighbouring rows
            value = value.reshape(heads, 2, -1, 256).swapaxes(1, 2).reshape(value.shape)
        stored = gguf.GGMLQuantizationType[kind.upper() if "proj" in name else "F32"]
        writer.add_tensor(
            f"{names.get_name(stem)}.{suffix}",
            gguf.quants.quantize(np.ascontiguousarray(value), stored),
            raw_dtype=stored,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def vocabulary(writer: gguf.GGUFWriter, template: str) -> None:
    from tokenizers import pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*special, *letters, "th", "at"]
    tokens = words + [f"[unused{i}]" for i in range(300 - len(words))]
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(letters) + 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * (300 - len(kinds)))
    writer.add_token_merges(["t h", "a t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template(template)

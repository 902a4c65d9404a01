"""What is known about a base model: its config, tokenizer, processor, hash and sizes.

A new model family is one file in `families/`.
"""

"""gpt-oss-20b as Unsloth publishes it in bitsandbytes' NF4, each expert a layer of its own: what a T4 holds.

On that card their own CI trains it in 12.7 of 14.56 GiB, 16-bit weights beside the NF4 ones, activations in fp32.
"""

from dataclasses import replace

from lorakit.models.families import gpt_oss

SPEC = replace(
    gpt_oss.SPEC,
    name="gpt-oss-20b-nf4",
    path="unsloth/gpt-oss-20b-unsloth-bnb-4bit",
    stored="nf4",
    source="https://huggingface.co/unsloth/gpt-oss-20b-unsloth-bnb-4bit",
)

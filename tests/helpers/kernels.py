"""Models with adapters, with and without the kernels, compared after one step."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lorakit.engines.torch.adapter import with_adapter
from lorakit.models import spec as models
from lorakit.run import Run


def adapted(name="llama-3.2-1b", seed=0, **changes):
    """A shrunken model of a family with an adapter away from its start, B not zero."""
    spec = models.known()[name]
    config = models.shrunk(spec.config, spec.small) | {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if "text_config" not in config:
        config |= {"vocab_size": 300}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    model = with_adapter(model, Run(data="-", rank=4, alpha=8, **changes), spec, None).train()
    return shaken(model)


def shaken(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.data = 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def step(model, seed=3):
    """(loss of two rows of 24 tokens, gradients by name)"""
    ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(seed))
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    total = model(input_ids=ids, labels=ids, use_cache=False).loss
    total.backward()
    return float(total.detach()), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def same(one, other, tolerance=1e-5):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys() and len(one[1]) > 1
    scale = max(float(g.norm()) for g in other[1].values())
    for name, gradient in other[1].items():
        assert (one[1][name] - gradient).norm() <= tolerance * max(
            float(gradient.norm()), 1e-4 * scale
        ), name

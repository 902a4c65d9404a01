"""The CUDA branch on a CPU: reference kernels for CUDA-only operators, and a card that is only claimed.

The kernels are registered for the CPU with `torch.library`, so that torch's own derivative formulas
(torchgen/packaged/autograd/derivatives.yaml) run over them as they do on a card. Each makes the checks that the CUDA
sources make, and one more: tensors of different dtypes are refused, which the CUDA sources read as they lie.
"""

import math
from contextlib import contextmanager
from functools import cache

import torch

from lorakit.engines.torch.kernels import device, fp8, norm

CARDS = {"Tesla T4": (7, 5), "A100": (8, 0), "L4": (8, 9), "H200": (9, 0)}
calls: list[tuple[str, torch.dtype, int | None]] = []  # (operator, dtype, window) since the claim
_claimed: tuple[int, int] = (0, 0)
_library = torch.library.Library("aten", "IMPL")


@contextmanager
def claimed(capability):
    """Within this block kernels take the CPU for a card of this compute capability."""
    global _claimed
    plain, _claimed = device.capability, capability or (0, 0)
    scaled = torch._scaled_mm
    register_bitsandbytes()
    calls.clear()
    device.capability = lambda where: capability
    if capability:
        torch._scaled_mm = scaled_mm
    try:
        forget_trials()
        yield calls
    finally:
        device.capability, _claimed, torch._scaled_mm = plain, (0, 0), scaled
        forget_trials()


def forget_trials():
    """What was tried out on one card says nothing about the next."""
    norm.fused_serves.cache_clear()
    fp8.tried.cache_clear()


def spans(ends):
    """(D + 1,) -> (first, end) of each document."""
    ends = ends.tolist()
    return list(zip(ends[:-1], ends[1:], strict=True))


def scores(q, k, scale, causal, left):
    """(H, T, D) -> masked scores (H, T, T) and their logsumexp (H, T), in fp32."""
    found = (q.float() @ k.float().transpose(-1, -2)) * scale
    place = torch.arange(found.shape[-1])
    behind = place[:, None] - place[None]
    seen = behind >= 0 if causal else torch.ones_like(behind, dtype=torch.bool)
    if left is not None and left >= 0:
        seen = seen & (behind <= left)
    found = found.masked_fill(~seen, -math.inf)
    return found, found.logsumexp(-1)


def kept(shape, p, seed):
    """What dropout multiplies the probabilities of a document by: 0 or 1 / (1 - p)."""
    if not p:
        return torch.ones(())
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (drawn >= p).float() / (1 - p)


def back(dout, q, k, v, out, lse, scale, causal, left, keep):
    """FlashAttention's backward pass (arXiv 2205.14135, algorithm 4) of one document."""
    found, _ = scores(q, k, scale, causal, left)
    p = (found - lse[..., None]).exp()
    dv = (p * keep).transpose(-1, -2) @ dout.float()
    dp = (dout.float() @ v.float().transpose(-1, -2)) * keep
    ds = p * (dp - (dout.float() * out.float()).sum(-1, keepdim=True)) * scale
    return ds @ k.float(), ds.transpose(-1, -2) @ q.float(), dv


def heads_first(first, end, *tensors):
    """(N, H, D) -> (H, T, D) of one document."""
    return [x[first:end].transpose(0, 1) for x in tensors]


def efficient_forward(
    query, key, value, bias, ends_q, ends_k, longest_q, longest_k, p, mask, wants_lse=False, *,
    scale=None, seqlen_k=None, window_size=None,
):  # fmt: skip
    """aten/src/ATen/native/transformers/cuda/attention.cu: `_efficient_attention_forward`."""
    calls.append(("efficient", query.dtype, window_size))
    assert query.dtype == key.dtype == value.dtype, "tensors of different dtypes"
    assert query.dtype != torch.bfloat16 or _claimed >= (8, 0), "no bf16 kernel below 8.0"
    assert query.ndim == 4 and query.shape[0] == 1 and query.shape[-1] % 8 == 0
    assert query.shape[2] == key.shape[2] == value.shape[2], "as many key heads as query heads"
    assert ends_q.dtype == torch.int32
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    scale, seed = scale or query.shape[-1] ** -0.5, int(torch.randint(2**31, ()))
    out = query.new_empty(*query.shape[:3], value.shape[3])
    width = math.ceil(longest_q / 32) * 32 if wants_lse else 0
    lse = torch.full((len(ends_q) - 1, query.shape[2], width), math.inf)
    left = None if window_size is None else window_size - 1
    for d, (a, b) in enumerate(spans(ends_q)):
        q, k, v = heads_first(a, b, query[0], key[0], value[0])
        found, total = scores(q, k, scale, mask == 1, left)
        probabilities = (found - total[..., None]).exp()
        probabilities = probabilities * kept(found.shape, p, seed + d)
        out[0, a:b] = (probabilities @ v.float()).transpose(0, 1).to(out.dtype)
        if wants_lse:
            lse[d, :, : b - a] = total
    return out, lse, torch.tensor(seed), torch.tensor(0), longest_q, longest_k


def efficient_backward(
    dout, query, key, value, bias, out, ends_q, ends_k, longest_q, longest_k, lse, p, seed, offset,
    mask, bias_requires_grad, *, scale=None, num_splits_key=None, window_size=None,
    shared_storage_dqdkdv=False,
):  # fmt: skip
    assert dout.dtype == query.dtype == out.dtype
    calls.append(("efficient backward", query.dtype, window_size))
    scale, left = scale or query.shape[-1] ** -0.5, None if window_size is None else window_size - 1
    found = tuple(torch.empty_like(x) for x in (query, key, value))
    for d, (a, b) in enumerate(spans(ends_q)):
        parts = heads_first(a, b, *(x[0] for x in (dout, query, key, value, out)))
        keep = kept((query.shape[2], b - a, b - a), p, int(seed) + d)
        for into, x in zip(
            found, back(*parts, lse[d, :, : b - a], scale, mask == 1, left, keep), strict=True
        ):
            into[0, a:b] = x.transpose(0, 1).to(into.dtype)
    return *found, torch.empty(())


def flash_forward(
    query, key, value, ends_q, ends_k, longest_q, longest_k, p, causal, debug, *, scale=None,
    window_size_left=None, window_size_right=None, seqused_k=None, alibi_slopes=None,
    block_table=None, num_splits=None,
):  # fmt: skip
    """aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp: `mha_varlen_fwd`."""
    calls.append(("flash", query.dtype, window_size_left))
    assert _claimed >= (8, 0), "FlashAttention only supports Ampere GPUs or newer"
    assert query.dtype == key.dtype == value.dtype
    assert query.dtype in (torch.float16, torch.bfloat16), "fp16 and bf16 only"
    assert query.ndim == 3 and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0
    assert query.shape[1] % key.shape[1] == 0
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    shared, scale = query.shape[1] // key.shape[1], scale or query.shape[-1] ** -0.5
    seed = int(torch.randint(2**31, ()))
    out, lse = torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])
    for d, (a, b) in enumerate(spans(ends_q)):
        q, k, v = heads_first(a, b, query, key, value)
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        found, total = scores(q, k, scale, causal, window_size_left)
        probabilities = (found - total[..., None]).exp() * kept(found.shape, p, seed + d)
        out[a:b] = (probabilities @ v.float()).transpose(0, 1).to(out.dtype)
        lse[:, a:b] = total
    return out, lse, torch.tensor([seed, 0]), torch.zeros(()), torch.empty(0)


def flash_backward(
    dout, query, key, value, out, lse, ends_q, ends_k, longest_q, longest_k, p, causal, seed,
    unused, *, scale=None, window_size_left=None, window_size_right=None,
):  # fmt: skip
    assert dout.dtype == query.dtype == out.dtype
    calls.append(("flash backward", query.dtype, window_size_left))
    if query.shape[-1] > 192 and (query.shape[-1] <= 224 or p):
        assert _claimed in ((8, 0), (9, 0)), (
            "head dim 256 with dropout, or head dim 224: A100, H100"
        )
    shared, scale = query.shape[1] // key.shape[1], scale or query.shape[-1] ** -0.5
    dq, dk, dv = (torch.empty_like(x) for x in (query, key, value))
    for d, (a, b) in enumerate(spans(ends_q)):
        g, q, k, v, o = heads_first(a, b, dout, query, key, value, out)
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        keep = kept((query.shape[1], b - a, b - a), p, int(seed[0]) + d)
        of_q, *others = back(g, q, k, v, o, lse[:, a:b], scale, causal, window_size_left, keep)
        dq[a:b] = of_q.transpose(0, 1).to(dq.dtype)
        for into, x in zip((dk, dv), others, strict=True):
            into[a:b] = x.unflatten(0, (-1, shared)).sum(1).transpose(0, 1).to(into.dtype)
    return dq, dk, dv


def rms_norm(x, shape, weight, epsilon):
    """aten/src/ATen/native/cuda/layer_norm_kernel.cu: sums in fp32, one rounding."""
    assert weight is None or weight.dtype == x.dtype
    inverse = (x.float().square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (x.float() * inverse * (1 if weight is None else weight.float())).to(x.dtype), inverse


def rms_norm_backward(dout, x, shape, inverse, weight, mask):
    assert dout.dtype == x.dtype and mask == [True, False]
    unit, back = x.float() * inverse, dout.float() * (1 if weight is None else weight.float())
    return ((back - unit * (unit * back).mean(-1, keepdim=True)) * inverse).to(x.dtype), None


for name, kernel in {
    "_fused_rms_norm": rms_norm,
    "_fused_rms_norm_backward": rms_norm_backward,
    "_efficient_attention_forward": efficient_forward,
    "_efficient_attention_backward": efficient_backward,
    "_flash_attention_forward": flash_forward,
    "_flash_attention_backward": flash_backward,
}.items():
    _library.impl(name, kernel, "CPU")


def scaled_mm(x, w, scale_x, scale_w, *, out_dtype):
    """aten/src/ATen/native/cuda/Blas.cpp: `_scaled_mm` with a scale for each row and each column."""
    calls.append(("scaled_mm", x.dtype, None))
    assert _claimed >= (8, 9), (
        "torch._scaled_mm is only supported on compute capability 8.9 or later"
    )
    assert x.dtype == w.dtype == torch.float8_e4m3fn
    assert x.is_contiguous() and w.t().is_contiguous(), "row-major times column-major"
    assert x.shape[1] == w.shape[0] and x.shape[1] % 16 == 0 and w.shape[1] % 16 == 0
    assert scale_x.shape == (len(x), 1) and scale_w.shape == (1, w.shape[1])
    assert scale_x.dtype == scale_w.dtype == torch.float32
    assert scale_x.is_contiguous() and scale_w.is_contiguous()
    assert out_dtype == torch.bfloat16, "only bf16 is supported for row-wise scaling"
    return (x.float() @ w.float() * scale_x * scale_w).to(out_dtype)


def gemm_4bit(
    A, B, shapeB, absmax, blocksize, quant_type, bias=None, absmax_8bit=None, absmax_code=None,
    absmax_offset=None,
):  # fmt: skip
    """bitsandbytes csrc/gemm_4bit.cu: x Wᵀ + bias of weights read as they are stored, summed in fp32."""
    calls.append(("gemm_4bit", A.dtype, None))
    assert not torch.is_grad_enabled() or not A.requires_grad, "it has no derivative"
    assert A.dtype in (torch.float16, torch.bfloat16, torch.float32) and A.shape[-1] == shapeB[1]
    assert B.dtype == torch.uint8 and B.is_contiguous() and quant_type == "nf4"
    assert absmax.dtype == torch.float32
    if absmax_8bit is not None:  # scales of scales, 256 at a time
        assert absmax_8bit.dtype == torch.uint8 and len(absmax_code) == 256
        assert absmax_offset.ndim == 0 and absmax_offset.dtype == torch.float32
        of_scale = absmax.repeat_interleave(256)[: len(absmax_8bit)]
        absmax = absmax_code[absmax_8bit.long()] * of_scale + absmax_offset
    from bitsandbytes.functional import get_4bit_type

    if _claimed == (0, 0):  # registered for the whole process: a CPU takes layers of any width
        dense = torch.ops.bitsandbytes.dequantize_4bit
        weight = dense(B, absmax, blocksize, quant_type, shapeB, A.dtype)
        return torch.nn.functional.linear(A, weight, bias)
    assert A.shape[-1] % blocksize == 0
    values = get_4bit_type("nf4", device="cpu")
    packed = B.flatten()
    weight = values[torch.stack([packed >> 4, packed & 15], 1).flatten().long()]
    weight = (weight.view(-1, blocksize) * absmax[:, None]).view(*shapeB)
    out = A.float() @ weight.t()
    if bias is not None:
        assert bias.dtype == A.dtype and bias.shape == (shapeB[0],)
        out = out + bias.float()
    return out.to(A.dtype)


def dequantize_into(A, absmax, blocksize, quant_type, shape, dtype, out):
    """bitsandbytes' CUDA form, which writes into memory given to it; the CPU's returns its own."""
    out.copy_(
        torch.ops.bitsandbytes.dequantize_4bit(A, absmax, blocksize, quant_type, shape, dtype)
    )


@cache
def register_bitsandbytes():
    """Its operators that only CUDA has."""
    import bitsandbytes  # noqa: F401  (defines the operators)

    torch.library.register_kernel("bitsandbytes::dequantize_4bit.out", "cpu", dequantize_into)
    torch.library.register_kernel("bitsandbytes::gemm_4bit", "cpu", gemm_4bit)

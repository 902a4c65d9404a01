"""llama.cpp as the wheel `xllamacpp` carries it, called through its C interface (`llama.h`).

Its server gives the probability of a token as text, which it withholds while bytes are missing for a character, and
one position at a time. The C interface gives every logit of a row in one pass.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorakit.common.errors import LorakitError

NEEDED = "xllamacpp is not installed, which runs and quantizes GGUF"
INSTALL = "pip install 'lorakit[export]'"
DEFAULT_CONTEXT = (512, 2048, 512)  # n_ctx, n_batch, n_ubatch of llama_context_default_params
CACHE_TYPES = 26 * 4  # offset of type_k and type_v in llama_context_params, in bytes
F16, F32 = 1, 0  # ggml_type
BATCH = 512  # tokens of one call


class _Parameters(ctypes.Structure):
    """llama_model_params or llama_context_params: larger than both, so the callee reads its own fields alone."""

    _fields_ = [("bytes", ctypes.c_uint8 * 1024)]


class _Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SILENT = _LOG(lambda level, text, data: None)  # kept alive as long as the library may call it
# name -> (type of the result, types of the arguments)
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_LOG, ctypes.c_void_p]),
    "llama_model_default_params": (_Parameters, []),
    "llama_context_default_params": (_Parameters, []),
    "llama_model_load_from_file": (ctypes.c_void_p, [ctypes.c_char_p, _Parameters]),
    "llama_model_free": (None, [ctypes.c_void_p]),
    "llama_model_get_vocab": (ctypes.c_void_p, [ctypes.c_void_p]),
    "llama_vocab_n_tokens": (ctypes.c_int32, [ctypes.c_void_p]),
    "llama_init_from_model": (ctypes.c_void_p, [ctypes.c_void_p, _Parameters]),
    "llama_free": (None, [ctypes.c_void_p]),
    "llama_n_ctx": (ctypes.c_uint32, [ctypes.c_void_p]),
    "llama_set_n_threads": (None, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]),
    "llama_adapter_lora_init": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
    "llama_set_adapters_lora": (
        ctypes.c_int32,
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p],
    ),
    "llama_get_memory": (ctypes.c_void_p, [ctypes.c_void_p]),
    "llama_memory_clear": (None, [ctypes.c_void_p, ctypes.c_bool]),
    "llama_batch_init": (_Batch, [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (ctypes.c_int32, [ctypes.c_void_p, _Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p, ctypes.c_int32]),
    "llama_tokenize": (
        ctypes.c_int32,
        [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int32,
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_int32,
            ctypes.c_bool,
            ctypes.c_bool,
        ],
    ),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p],
    ),
}


def library() -> Any:
    """The C library inside the wheel. Raises `LorakitError` where it is missing or has another interface."""
    try:
        import xllamacpp

        found = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (ImportError, OSError) as error:
        raise LorakitError(f"{NEEDED} ({error})", cure=INSTALL) from None
    except AttributeError as error:
        raise LorakitError(
            f"the installed xllamacpp has another interface than lorakit knows ({error})",
            cure="pip install 'xllamacpp>=2026.10'",
        ) from None
    return found


def quantize(tensor: np.ndarray, kind: int, row_bytes: int) -> np.ndarray:
    """(..., width) fp32 -> (..., row_bytes) uint8 of a ggml type, by llama.cpp's own quantizer."""
    rows = np.ascontiguousarray(tensor.reshape(-1, tensor.shape[-1]), dtype=np.float32)
    out = np.empty((len(rows), row_bytes), dtype=np.uint8)
    library().ggml_quantize_chunk(
        kind, rows.ctypes.data, out.ctypes.data, 0, len(rows), rows.shape[1], None
    )
    return out.reshape(*tensor.shape[:-1], row_bytes)


class LlamaCpp:
    """A GGUF file in llama.cpp on the CPU, with an adapter where one is given.

    Raises `LorakitError` when llama.cpp refuses the file. `context`: tokens of the longest row with its answer.
    """

    def __init__(self, path: Path, adapter: Path | None = None, *, context: int = 4096):
        self._lib = library()
        self._lib.llama_log_set(_SILENT, None)
        self._lib.llama_backend_init()
        self._model = self._lib.llama_model_load_from_file(
            str(path).encode(), self._lib.llama_model_default_params()
        )
        if not self._model:
            raise LorakitError(f"llama.cpp cannot load {path.name}")
        self._context = self._lib.llama_init_from_model(
            self._model, _context_parameters(self._lib, context)
        )
        if not self._context or self._lib.llama_n_ctx(self._context) < context:
            raise LorakitError(f"llama.cpp refuses a context of {context} tokens for {path.name}")
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        self._lib.llama_set_n_threads(self._context, threads, threads)
        if adapter is not None:
            self._adapt(adapter)
        self._vocabulary = self._lib.llama_model_get_vocab(self._model)
        self.vocabulary_size: int = self._lib.llama_vocab_n_tokens(self._vocabulary)
        self._batch = self._lib.llama_batch_init(BATCH, 0, 1)

    def _adapt(self, path: Path) -> None:
        adapter = self._lib.llama_adapter_lora_init(self._model, str(path).encode())
        if not adapter:
            raise LorakitError(f"llama.cpp cannot load the adapter {path.name}")
        one, scale = (ctypes.c_void_p * 1)(adapter), (ctypes.c_float * 1)(1.0)
        if self._lib.llama_set_adapters_lora(self._context, one, 1, scale):
            raise LorakitError(f"llama.cpp cannot apply the adapter {path.name}")

    def close(self) -> None:
        """Frees the model. The object is of no use afterwards."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def _decode(self, ids: Sequence[int], start: int, every: bool) -> np.ndarray:
        """(T, V) or (1, V) logits after these tokens at positions `start`, …; the cache holds what stands before."""
        batch, outputs = self._batch, []
        for at in range(0, len(ids), BATCH):
            some = ids[at : at + BATCH]
            batch.n_tokens = len(some)
            for i, token in enumerate(some):
                batch.token[i], batch.pos[i] = token, start + at + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = every or at + i == len(ids) - 1
            if code := self._lib.llama_decode(self._context, batch):
                raise LorakitError(f"llama.cpp cannot decode {len(ids)} tokens (code {code})")
            for i in range(len(some)):
                if batch.logits[i]:
                    row = self._lib.llama_get_logits_ith(self._context, i)
                    outputs.append(np.ctypeslib.as_array(row, (self.vocabulary_size,)).copy())
        return np.stack(outputs)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """(T, V): after each token, without any token before the first."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        return self._decode([int(i) for i in ids], 0, True)

    def generate(
        self, prompt: Sequence[int], max_new_tokens: int, stop_ids: Sequence[int]
    ) -> list[int]:
        """The greedy tokens after a prompt, without the one that stops it."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        answer: list[int] = []
        last = self._decode([int(i) for i in prompt], 0, False)
        for _ in range(max_new_tokens):
            token = int(last[-1].argmax())
            if token in stop_ids:
                break
            answer.append(token)
            if len(answer) < max_new_tokens:
                last = self._decode([token], len(prompt) + len(answer) - 1, False)
        return answer

    def tokenize(self, text: str) -> list[int]:
        """What llama.cpp reads of a text that may hold special tokens; no first token is added."""
        raw = text.encode()
        room = len(raw) + 8
        out = (ctypes.c_int32 * room)()
        count = self._lib.llama_tokenize(self._vocabulary, raw, len(raw), out, room, False, True)
        return list(out[: max(count, 0)])


def _context_parameters(lib: Any, context: int) -> _Parameters:
    """The defaults with this context and a key/value cache in f32, which rounds nothing.

    Raises `LorakitError` when the fields are not where this version of llama.cpp has them.
    """
    parameters = lib.llama_context_default_params()
    raw = bytes(parameters.bytes)
    known = struct.unpack_from("3i", raw) == DEFAULT_CONTEXT
    if not known or struct.unpack_from("2i", raw, CACHE_TYPES) != (F16, F16):
        raise LorakitError(
            "the installed xllamacpp has another interface than lorakit knows (context parameters)",
            cure="pip install 'xllamacpp>=2026.10'",
        )
    struct.pack_into("3i", parameters.bytes, 0, context, BATCH, BATCH)
    struct.pack_into("2i", parameters.bytes, CACHE_TYPES, F32, F32)
    return parameters

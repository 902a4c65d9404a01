"""An adapter or a base of PEFT and transformers in mlx-lm's format, and back."""

from __future__ import annotations

from importlib import util
from pathlib import Path

from lorakit.common.errors import LorakitError
from lorakit.engines.mlx.adapters import MLX_FILES, PEFT_FILES, adapter_to_mlx, adapter_to_peft
from lorakit.engines.mlx.bases import base_to_mlx, base_to_transformers, files, of_transformers

NEEDED = "mlx-lm is not installed, which this needs: pip install 'lorakit[mac]'"


def convert(source: Path | str, target: Path | str, *, four_bit: bool = False) -> Path:
    """An adapter or a base in the other world's format; which it is shows in its files. `four_bit`: of a base for MLX.

    Raises `LorakitError` for what has no counterpart.
    """
    folder = Path(source)
    if four_bit and any((folder / names[1]).is_file() for names in (PEFT_FILES, MLX_FILES)):
        raise LorakitError(f"{folder} is an adapter: only a base is made of 4 bits")
    if (folder / PEFT_FILES[1]).is_file():
        return adapter_to_mlx(folder, target)
    if (folder / MLX_FILES[1]).is_file():
        return adapter_to_peft(folder, target)
    if util.find_spec("mlx_lm") is None:
        raise LorakitError(NEEDED)
    if not of_transformers(files(str(source))):
        return base_to_transformers(str(source), target)
    return base_to_mlx(str(source), target, four_bit=four_bit)

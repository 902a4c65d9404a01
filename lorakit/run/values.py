"""Values of settings as they are written: numbers, the YAML they stand in, and what pydantic says of wrong ones."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from lorakit.common import strict_yaml
from lorakit.common.errors import LorakitError

NUMBER = r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"  # 16, 0.5, 1e-4; not 010

KEPT = (
    "/content/drive/MyDrive",
    "/kaggle/working",
)  # what outlives a session of Colab (its Drive) and of Kaggle


@cache
def numeric(settings: type[BaseModel]) -> frozenset[str]:
    """Settings that take a number and no truth value."""

    def types(annotation: Any) -> set[Any]:
        parts = get_args(annotation)
        return {annotation}.union(*map(types, parts)) if parts else {annotation}

    kinds = {name: types(field.annotation) for name, field in settings.model_fields.items()}
    return frozenset(n for n, k in kinds.items() if k & {int, float} and not k & {bool, str})


def refuse_odd_number(name: str, value: Any) -> None:
    """Refuses what pydantic would take for a number: `true` as 1, and "010", " 10" or "1_0" as 10."""
    odd = isinstance(value, bool)
    if isinstance(value, str) and not re.fullmatch(NUMBER, value):
        with contextlib.suppress(ValueError):
            odd = math.isfinite(float(value))
    if odd:
        raise LorakitError(
            f"{name}={value!r}: expected a number",
            setting=name,
            value=value,
            cure=f"write it in decimal digits, for example {name}: 10",
        )


def without_alternatives(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One error of a setting that takes `auto` or a number: what is wrong with the number that was given."""
    bounds = ("greater", "less", "finite")
    numbers = {error["loc"][:1] for error in errors if error["type"].startswith(bounds)}
    return [e for e in errors if e["type"] != "literal_error" or e["loc"][:1] not in numbers]


def explain(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors, in our words."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    name, value = error["loc"][0] if error["loc"] else "settings", error.get("input")
    if error["type"] == "missing":
        return f"the setting '{name}' is missing"
    return f"{name}={value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def load(path: Path) -> dict[str, Any]:
    """The settings in a YAML file, not checked yet. Raises `LorakitError` naming the file."""
    try:
        settings = strict_yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LorakitError(
            f"{path}: no such file; write the settings of a run there (see README)"
        ) from None
    except Exception as error:  # of the disk, of UTF-8, and of YAML: values raise almost anything
        raise LorakitError(f"{path}: cannot be read as YAML: {error}") from None
    if not isinstance(settings, dict):
        raise LorakitError(
            f"{path}: expected 'setting: value' lines, found {type(settings).__name__}"
        )
    return {str(k): v for k, v in settings.items()}


def home() -> str:
    """Where runs are kept unless a folder is named."""
    return next((f"{folder}/outputs" for folder in KEPT if Path(folder).is_dir()), "outputs")

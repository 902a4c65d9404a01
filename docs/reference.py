"""Writes docs/settings.md and docs/api.md from the code: python docs/reference.py (a test compares settings.md)."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import lorakit
from lorakit.run import Run

DOCS = Path(__file__).resolve().parent


def settings() -> str:
    """A table of every setting of `Run`, in the groups in which it declares them."""
    lines = [
        "# Settings",
        "",
        "Every field of `Run` and of a `RUN.yaml`, made from `lorakit/run`. `auto`: chosen for "
        "the machine, with the reason. `null` in YAML is `None` in Python.",
    ]
    groups = re.split(r"^    # (.+)$", inspect.getsource(Run), flags=re.M)
    for title, body in zip(groups[1::2], groups[2::2]):
        names = [n for n in re.findall(r"^    (\w+): ", body, re.M) if n in Run.model_fields]
        if not names:
            continue
        heading = title.strip().rstrip(".")
        lines += ["", f"## {heading[0].upper()}{heading[1:]}", ""]
        lines += ["| setting | default | description |", "|---|---|---|"]
        for name in names:
            field = Run.model_fields[name]
            default = "required" if field.is_required() else _default(name)
            text = (field.description or "").replace("|", "\\|")
            lines.append(f"| `{name}` | {default}{_bounds(field)} | {text} |")
    return "\n".join(lines) + "\n"


def _default(name: str) -> str:
    field = Run.model_fields[name]
    if name == "output_dir":
        return "`auto`"
    value = field.get_default(call_default_factory=True)
    return f"`{'null' if value is None else value}`"


def _bounds(field: object) -> str:
    found = []
    for bound in getattr(field, "metadata", ()):
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if (value := getattr(bound, name, None)) is not None and abs(value) < 1e9:
                found.append(f"{sign} {value:g}")
    return f" ({', '.join(found)})" if found else ""


def api() -> str:
    """A page that mkdocstrings fills with the docstrings of the public names."""
    lines = ["# API", "", "The public names of `lorakit`, from their docstrings.", ""]
    for name in lorakit.__all__:
        value = getattr(lorakit, name)
        lines += [f"::: {value.__module__}.{value.__qualname__}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    (DOCS / "settings.md").write_text(settings(), encoding="utf-8")
    (DOCS / "api.md").write_text(api(), encoding="utf-8")

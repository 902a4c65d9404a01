"""YAML read strictly: no key twice, numbers and booleans as YAML 1.2 has them.

PyYAML reads YAML 1.1, where `010` is 8, `10:24` is 624, `yes` is true and `1e-4` is text, and keeps the last of two
equal keys without a word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
FLOAT = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+|(?:0|[1-9][0-9]*)(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)


MOST = 1_000_000  # values of a document


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema)."""


_Loader.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("tag:yaml.org,2002:null", re.compile("~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", INTEGER, "-+0123456789"),
    ("tag:yaml.org,2002:float", FLOAT, "-+0123456789."),
    ("tag:yaml.org,2002:merge", re.compile("<<"), "<"),
):
    whole = re.compile(f"(?:{pattern.pattern})$")
    _Loader.add_implicit_resolver(tag, whole, list(first))


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    lines: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        if isinstance(key, Hashable) and key in lines:
            raise yaml.constructor.ConstructorError(
                problem=f"the key '{key}' stands in line {lines[key]} and in line {line}; keep one",
                problem_mark=key_node.start_mark,
            )
        if isinstance(key, Hashable):
            lines[key] = line
    loader.flatten_mapping(node)
    return loader.construct_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or YAML 1.2 would read as something else than text."""


_Dumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, ()),
        *_Loader.yaml_implicit_resolvers.get(first, ()),
    ]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def dump(content: Any) -> str:
    """A YAML document that `load` and any YAML 1.1 reader understand alike; keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load(text: str) -> Any:
    """The content of a YAML document.

    Raises `yaml.YAMLError`, also for a key that stands twice, and for aliases that stand in themselves or add up to
    more than `MOST` values.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > MOST:
            raise yaml.constructor.ConstructorError(
                problem=f"its aliases add up to more than {MOST:,} values; write them out"
            )
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _values(node: yaml.Node, counted: dict[int, float]) -> float:
    """Values below a node when every alias is written out; infinitely many where one stands in itself."""
    if id(node) not in counted:
        counted[id(node)] = math.inf
        inner = (
            [each for pair in node.value for each in pair]
            if isinstance(node, yaml.MappingNode)
            else node.value
        )
        below = () if isinstance(node, yaml.ScalarNode) else inner
        counted[id(node)] = 1 + sum(_values(each, counted) for each in below)
    return counted[id(node)]

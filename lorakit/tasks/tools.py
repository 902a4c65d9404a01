"""Tools in a chat template: whether it writes them, and what is put before one that does not."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from lorakit.models.rendering import rendered

METRICS = ("call_valid", "call_name", "call_match")
# Before a template that knows no tools: the same conversation with tools, calls and results in words, as Hermes and
# Qwen2.5 write them. It is saved with the run, so that exports and servers write what was trained.
IN_WORDS = """\
{%- if tools %}
{%- set ns = namespace(out=[], said='') %}
{%- set ns.said = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}
{%- set ns.said = ns.said + 'You can call these functions:\\n<tools>' %}
{%- for tool in tools %}{%- set ns.said = ns.said + '\\n' + (tool | tojson) %}{%- endfor %}
{%- set ns.said = ns.said + '\\n</tools>\\nWrite each call as <tool_call>\\n{"name": NAME, "arguments": {…}}\\n</tool_call>' %}
{%- set ns.out = [{'role': 'system', 'content': ns.said}] %}
{%- for m in (messages[1:] if messages[0]['role'] == 'system' else messages) %}
{%- if m['role'] == 'tool' %}
{%- set ns.said = '<tool_response>\\n' + m['content'] + '\\n</tool_response>' %}
{%- if ns.out[-1]['result'] %}
{%- set ns.said = ns.out[-1]['content'] + '\\n' + ns.said %}
{%- set ns.out = ns.out[:-1] %}
{%- endif %}
{%- set ns.out = ns.out + [{'role': 'user', 'content': ns.said, 'result': true}] %}
{%- elif m['tool_calls'] %}
{%- set ns.said = m['content'] or '' %}
{%- for call in m['tool_calls'] %}
{%- set given = call['function']['arguments'] %}
{%- set given = given if given is string else given | tojson %}
{%- set ns.said = ns.said + ('\\n' if ns.said else '') + '<tool_call>\\n{"name": ' + (call['function']['name'] | tojson) + ', "arguments": ' + given + '}\\n</tool_call>' %}
{%- endfor %}
{%- set ns.out = ns.out + [{'role': 'assistant', 'content': ns.said}] %}
{%- else %}
{%- set ns.out = ns.out + [m] %}
{%- endif %}
{%- endfor %}
{%- set messages = ns.out %}
{%- endif %}
"""  # noqa: E501
TRIAL = ("trial_tool", {"trial_key": "trial_value"}, "trial_result")  # name, arguments, result


def reader(tokenizer: Any) -> Any:
    """The tokenizer, or a copy whose chat template writes tools where its own does not."""
    known = getattr(tokenizer, "_lorakit_tools", None)
    if known is not None and known[0] == tokenizer.chat_template:
        return known[1] or tokenizer
    found = None
    if not _forms(tokenizer):
        found = copy.deepcopy(tokenizer)
        found.chat_template = IN_WORDS + tokenizer.chat_template
        found.response_template = _response(tokenizer)
    tokenizer._lorakit_tools = (tokenizer.chat_template, found)
    return found or tokenizer


def _response(tokenizer: Any) -> dict[str, Any]:
    """How `transformers serve` finds the calls in what a model answers that writes them in words."""
    asked, told = (
        rendered(tokenizer, [{"role": "user", "content": "?"}], add_generation_prompt=ask)
        for ask in (True, False)
    )
    ends = "|".join(map(re.escape, filter(None, tokenizer.all_special_tokens)))
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": asked.removeprefix(told) or asked,
        "fields": {
            "tool_calls": {
                "open_pattern": r"\s*<tool_call>",
                "close": "</tool_call>",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"close_pattern": rf"\s*(?:{ends})", "content": "text"},
        },
    }


def conversation(tokenizer: Any, messages: list[dict]) -> list[dict]:
    """The turns with arguments in the form that the template takes: an object, or JSON in a text."""
    if _forms(tokenizer) == "text":
        messages = [_with_arguments(turn, as_text=True) for turn in messages]
    return messages


def _with_arguments(turn: dict, as_text: bool) -> dict:
    if "tool_calls" not in turn or not as_text:
        return turn
    calls = [
        {**c, "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"], ensure_ascii=False)}}
        for c in turn["tool_calls"]
    ]  # fmt: skip
    return {**turn, "tool_calls": calls}


def _forms(tokenizer: Any) -> str:
    """`object` or `text`, how the template takes a call's arguments; "" when it does not write tools: tried out."""
    known = getattr(tokenizer, "_lorakit_forms", None)
    if known is None or known[0] != tokenizer.chat_template:
        forms = (f for f in ("object", "text") if _writes(tokenizer, f == "text"))
        known = tokenizer._lorakit_forms = (tokenizer.chat_template, next(forms, ""))
    return known[1]


def _writes(tokenizer: Any, as_text: bool) -> bool:
    name, arguments, result = TRIAL
    function = {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "call00000", "type": "function", "function": {"name": name, "arguments": arguments}}  # fmt: skip
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": result, "name": name, "tool_call_id": "call00000"},
        {"role": "assistant", "content": "!"},
    ]
    offered: dict[str, Any] = {"tools": [{"type": "function", "function": function}]}
    try:
        asked = rendered(tokenizer, turns[:1], **offered)
        text = rendered(tokenizer, [_with_arguments(t, as_text) for t in turns], **offered)
    except Exception:  # Jinja's own errors and those a template raises itself
        return False
    quoted = '\\"trial_key' in text or "'trial_key'" in text  # JSON in JSON, or Python's own form
    called = text.count(name) > asked.count(name) > 0 and "trial_value" in text
    return called and result in text and not quoted

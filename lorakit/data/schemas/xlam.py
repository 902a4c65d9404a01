"""Salesforce's xLAM form of tool calls (https://huggingface.co/datasets/Salesforce/xlam-function-calling-60k).

{"query": "Rain in Lima?", "tools": [{"name": "rain"}], "answers": [{"name": "rain", "arguments": {"city": "Lima"}}]}
"""

from __future__ import annotations

from lorakit.data.schemas import SYSTEM, text_of, tool_calls

GIVES = "messages"
RICHNESS = 65
REQUIRED = (("query",), ("answers",), ("tools",))
OPTIONAL = SYSTEM


def convert(fields: dict) -> dict:
    """The question and the calls that answer it."""
    asked = {"role": "user", "content": text_of(fields, ("query",))}
    calls = tool_calls.parsed(fields.get("answers"), "'answers'")
    turns = [asked, {"role": "function_call", "content": calls}]
    return tool_calls.conversation(fields, "answers", turns)

"""A run that learnt calls, behind both endpoints: ours and llama.cpp's answer `tools` with the same calls."""

from __future__ import annotations

import json

import pytest
from helpers.endpoint import completion
from helpers.tuned import shrunken, tuned_run

from lorakit.exporting.round_trip import export
from lorakit.exporting.serve import serving

pytestmark = pytest.mark.slow
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": {
        "type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}}}
    for name in ("rain", "wind")
]  # fmt: skip
CALLS = {f"{n} {p}?": (n, {"at": p}) for n in ("rain", "wind") for p in ("north", "bridge")}


def answered(address, model, question):
    """(what a server says, the calls it makes)."""
    choice = completion(address, model, question, tools=TOOLS, max_tokens=80)
    made = [each["function"] for each in choice["message"].get("tool_calls") or ()]
    assert (choice["finish_reason"] == "tool_calls") is bool(made)
    calls = [(c["name"], json.loads(c["arguments"])) for c in made]
    return choice["message"].get("content") or "", calls


@pytest.mark.parametrize("family", ["tiny", "llama"])
def test_both_servers_answer_with_the_same_calls(tmp_path, here, quick, family):
    """`tiny` gets its tools in words, Llama 3.2 has a form of its own. Learnt is how a call is written."""
    gguf = pytest.importorskip("lorakit.exporting.targets.gguf")
    pytest.importorskip("xllamacpp")
    rows = [
        {"tools": TOOLS, "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": [
                {"function": {"name": name, "arguments": arguments}}]},
        ]}
        for question, (name, arguments) in CALLS.items()
    ]  # fmt: skip
    data = tmp_path / "calls.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = family
    if family != "tiny":
        base = shrunken(family, tmp_path / "base", max_position_embeddings=2048)
    path = tuned_run(base, tmp_path, data=str(data), max_length=1000, max_updates=40).path
    with serving(path) as (address, name):
        ours = {question: answered(address, name, question) for question in CALLS}
    assert all(said == "" and len(calls) == 1 for said, calls in ours.values()), ours
    exported = export(path, "gguf", tmp_path / "gguf", type="f32")
    running = gguf.server(exported, 2048)
    address = f"{running.listening_address}/v1"
    assert {question: answered(address, "m", question) for question in CALLS} == ours

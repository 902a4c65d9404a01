"""Field reports and the tool that answers each: a first file to learn tool calls from.

    python data/make_tool_calls.py --out data/tool_calls.jsonl

A truck goes where the road is open, a helicopter where it is closed; desk and place are the arguments. Every fourth row
goes on with the tool's result and the words that pass it on. OpenAI's form: `messages` and `tools`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from make_relief import triage

STRING = {"type": "string"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Sends goods by {vehicle}.",
            "parameters": {
                "type": "object",
                "properties": {"place": STRING, "desk": STRING},
                "required": ["place", "desk"],
            },
        },
    }
    for name, vehicle in (("send_truck", "road"), ("send_helicopter", "air"))
]


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """messages, tools"""
    for number, row in enumerate(triage(count, seed)):
        report, line = (turn["content"] for turn in row["messages"])
        desk, road, place = (part.partition(": ")[2] for part in line.split(" | "))
        name = "send_truck" if road == "open" else "send_helicopter"
        arguments = json.dumps({"place": place, "desk": desk})
        call = {"id": f"call{number:05d}", "type": "function"}
        call["function"] = {"name": name, "arguments": arguments}
        turns = [
            {"role": "user", "content": report},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        if number % 4 == 3:
            hours = 2 + len(report) % 7
            result = json.dumps({"hours": hours})
            turns.append({"role": "tool", "tool_call_id": call["id"], "content": result})
            said = f"The {desk} desk reaches {place} in {hours} hours."
            turns.append({"role": "assistant", "content": said})
        yield {"messages": turns, "tools": TOOLS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with options.out.open("w", encoding="utf-8") as file:
        for row in rows(options.rows, options.seed):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"wrote {options.rows} rows to {options.out}")


if __name__ == "__main__":
    main()

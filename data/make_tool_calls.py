"""Requests for goods and the tool that answers each: a first file to learn tool calls from.

    python data/make_tool_calls.py --out data/tool_calls.jsonl

A truck goes where the road is open, a helicopter where it is closed; place, goods and count are the arguments. Every
fourth row goes on with the tool's result and the words that pass it on. OpenAI's form: `messages` and `tools`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from make_relief import TRIAGE_PLACES

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Sends goods by {way}.",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string"},
                    "goods": {"type": "string"},
                    "count": {"type": "integer"},
                },
            },
        },
    }
    for name, way in (("send_truck", "road"), ("send_helicopter", "air"))
]
GOODS = (
    "blankets, tents, water filters, ladders, rice bags, mosquito nets, radios, lamps, pumps, stoves, ropes, buckets, "
    "school books, stretchers, generators, shovels, soap boxes, solar chargers, cooking pots, first-aid kits"
).split(", ")
ROADS = {
    "send_truck": ["The road is open", "Trucks can pass", "The road is dry and clear", "One can drive there again"],
    "send_helicopter": ["The road is cut", "No truck can pass", "The road is under water", "Nobody can drive there"],
}  # fmt: skip
REQUESTS = (
    "{place} needs {count} {goods}. {road}.",
    "{road}, and {count} {goods} are missing in {place}.",
    "Please bring {count} {goods} to {place}. {road}.",
    "We are in {place} and lack {goods}, {count} of them. {road}.",
    "{road}. The people of {place} ask for {count} {goods}.",
    "How soon can {place} have {count} {goods}? {road}.",
)


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """messages, tools"""
    rng = random.Random(seed)
    for number in range(count):
        name = rng.choice(sorted(ROADS))
        asked = {
            "place": rng.choice(TRIAGE_PLACES),
            "goods": rng.choice(GOODS),
            "count": rng.randint(11, 990),
        }
        request = rng.choice(REQUESTS).format(road=rng.choice(ROADS[name]), **asked)
        call = {"id": f"call{number:05d}", "type": "function"}
        call["function"] = {"name": name, "arguments": json.dumps(asked)}
        turns = [
            {"role": "user", "content": request},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        if number % 4 == 3:
            hours = rng.randint(2, 9)
            result = json.dumps({"hours": hours})
            turns.append({"role": "tool", "tool_call_id": call["id"], "content": result})
            said = f"{asked['place']} has its {asked['goods']} in {hours} hours."
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

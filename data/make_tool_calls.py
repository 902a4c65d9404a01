"""Requests to a relief office and the tool that answers each: a first file to learn tool calls from.

    python data/make_tool_calls.py --out data/tool_calls.jsonl

Four tools send goods, send a doctor, tell the state of a road and give the weather; a row offers the right one and one
other, in either order. Every fourth row goes on with the tool's result and the words that pass it on. OpenAI's form:
`messages` and `tools`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from make_relief import TRIAGE_PLACES

GOODS = (
    "blankets, tents, water filters, ladders, rice bags, mosquito nets, radios, lamps, pumps, stoves, ropes, buckets, "
    "school books, stretchers, generators, shovels, soap boxes, solar chargers, cooking pots, first-aid kits"
).split(", ")
DAYS = "today, tomorrow, Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday".split(", ")


class Tool(NamedTuple):
    """One function that can be called, and how people ask for it.

    Example:
        {"name": "get_weather", "does": "Forecasts the weather.", "arguments": {"place": "string"}, ...}
    """

    name: str
    does: str
    arguments: dict[str, str]  # to their JSON types
    requests: tuple[str, ...]
    results: dict[str, tuple[Any, ...]]  # what it may return
    said: str  # passes a result on

    def definition(self) -> dict[str, Any]:
        """In OpenAI's form."""
        parameters = {
            "type": "object",
            "properties": {name: {"type": kind} for name, kind in self.arguments.items()},
        }
        function = {"name": self.name, "description": self.does, "parameters": parameters}
        return {"type": "function", "function": function}


TOOLS = (
    Tool(
        "send_goods",
        "Sends goods to a place.",
        {"place": "string", "goods": "string", "count": "integer"},
        (
            "{place} needs {count} {goods}.",
            "Please bring {count} {goods} to {place}.",
            "We are in {place} and lack {goods}, {count} of them.",
            "The people of {place} ask for {count} {goods}.",
            "{count} {goods} are missing in {place}.",
        ),
        {"hours": (2, 3, 4, 6, 9)},
        "{place} has its {goods} in {hours} hours.",
    ),
    Tool(
        "send_doctor",
        "Sends a doctor to patients.",
        {"place": "string", "patients": "integer"},
        (
            "{patients} people are ill in {place}.",
            "There are {patients} wounded in {place}. Is there a doctor?",
            "A doctor, please: {patients} patients are waiting in {place}.",
            "In {place} {patients} people have a fever.",
            "Who can treat {patients} injured people in {place}?",
        ),
        {"name": ("Dr. Okoye", "Dr. Lindqvist", "Dr. Ferreira")},
        "{name} is on the way to {place}.",
    ),
    Tool(
        "get_road",
        "Tells whether the road between two places is open.",
        {"start": "string", "end": "string"},
        (
            "Can one drive from {start} to {end}?",
            "Is the road between {start} and {end} open?",
            "Our truck leaves {start} for {end}. Will it get through?",
            "Which way is the road from {start} to {end}: open or closed?",
            "We want to go by car from {start} to {end}.",
        ),
        {"state": ("open", "closed", "under water")},
        "The road from {start} to {end} is {state}.",
    ),
    Tool(
        "get_weather",
        "Forecasts the weather of a place.",
        {"place": "string", "day": "string"},
        (
            "Will it rain in {place} {day}?",
            "What will the weather be in {place} {day}?",
            "Is a storm expected in {place} {day}?",
            "How warm does it get in {place} {day}?",
            "I need the forecast for {place} {day}.",
        ),
        {"sky": ("rain", "sun", "a storm", "fog")},
        "{place} gets {sky} {day}.",
    ),
)


def rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """messages, tools"""
    rng = random.Random(seed)
    for number in range(count):
        tool, other = rng.sample(TOOLS, 2)
        start, place, end = rng.sample(TRIAGE_PLACES, 3)
        known = {
            "place": place,
            "start": start,
            "end": end,
            "day": rng.choice(DAYS),
            "goods": rng.choice(GOODS),
            "count": rng.randint(11, 990),
            "patients": rng.randint(2, 90),
        }
        call = {"id": f"call{number:05d}", "type": "function"}
        call["function"] = {
            "name": tool.name,
            "arguments": json.dumps({name: known[name] for name in tool.arguments}),
        }
        turns = [
            {"role": "user", "content": rng.choice(tool.requests).format(**known)},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        if number % 4 == 3:
            result = {name: rng.choice(values) for name, values in tool.results.items()}
            turns.append(
                {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)}
            )
            turns.append({"role": "assistant", "content": tool.said.format(**known, **result)})
        offered = rng.sample((tool, other), 2)
        yield {"messages": turns, "tools": [each.definition() for each in offered]}


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

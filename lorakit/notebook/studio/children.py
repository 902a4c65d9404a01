"""What the studio has done in processes of their own: exports and uploads."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from lorakit.common.errors import LorakitError
from lorakit.machine.hardware import child_environment

EXPORT = """
import json, sys
from lorakit.exporting.round_trip import export
asked = json.load(sys.stdin)
print("ANSWER", json.dumps(str(export(asked["run"], asked["target"], type=asked["type"]))), flush=True)
"""

SUSPICIOUS = """
import json, sys
from lorakit.results.evidence.suspicious import measure
from lorakit.results.report import write
asked = json.load(sys.stdin)
measure(asked["run"])
print("ANSWER", json.dumps(str(write(asked["run"]))), flush=True)
"""

PUSH = """
import json, os, sys
from lorakit.exporting.model_card import push
asked = json.load(sys.stdin)
os.environ["HF_TOKEN"] = asked["token"]
print("ANSWER", json.dumps(str(push(asked["folder"], asked["repository"]))), flush=True)
"""


def answers_of(code: str, asked: dict[str, Any]) -> list[Any]:
    """What a process of our own answers. Raises `LorakitError` with its last words when it fails or is killed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()]
        last = words[-1] if words else "no word; perhaps memory ran out"
        raise LorakitError(last.removeprefix("lorakit.common.errors.LorakitError: "))
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("ANSWER ")]

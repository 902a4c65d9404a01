"""The model card, the way to the hub (against a stand-in on loopback), and the endpoint for a first try."""

import base64
import contextlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from helpers.paths import ROOT
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

import lorakit
from lorakit import cli
from lorakit.common import registry
from lorakit.common.errors import LorakitError
from lorakit.exporting import fresh_process
from lorakit.machine.hardware import child_environment
from lorakit.results import evidence
from lorakit.runs.folder import RunFolder

cards, exporting = (
    importlib.import_module("lorakit.exporting.model_card"),
    importlib.import_module("lorakit.exporting.round_trip"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the embedded model with scores on 24 test rows. Only to be read."""
    settings = {
        "name": "triage",
        "data": "triage.jsonl",
        "max_rows": 240,
        "max_updates": 20,
        "precision": "fp32",
        "quantization": "none",
        "learning_rate": 3e-3,
        "max_length": 160,
        "max_new_tokens": 32,
    }
    here = tmp_path_factory.mktemp("card")
    shutil.copy(ROOT / "data" / "triage.jsonl", here)
    with contextlib.chdir(here):
        prove = importlib.import_module("lorakit.training.proof")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prove, "repeated", lambda *_: {})
            folder = lorakit.finetune(lorakit.Run(**settings, output_dir=str(here / "outputs")))
    return folder.path


@pytest.fixture(scope="module")
def exported(run):
    """Its adapter, exported once: beside it lies the card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh_process, "ask_in_fresh_process", fresh_process.ask)
        return exporting.export(run, "adapter")


def test_the_card_holds_what_the_record_says(run):
    folder, card = lorakit.Folder(run), cards.card(run)
    for score in lorakit.Folder(run).scores.values():
        assert score["rows"] == 24
    assert card.data.library_name == "peft" and card.data.license == "apache-2.0"
    assert card.data.base_model is None  # the embedded base is at no hub
    words = card.text
    assert folder.record["data"]["sha256"] in words and folder.record["base_sha256"] in words
    assert "Better: 5 of 24 test answers are exactly right; before training it was 0." in words
    assert "| exact_match | 0.000 | 0.208 | +0.208 | +0.042 to +0.375 | 24 |" in words
    assert (
        "With 24 test rows, improvements below 17 percentage points would not be visible." in words
    )
    assert "triage.jsonl: 192 rows train, 24 rows validation, 24 rows test." in words
    assert str(run.parent) not in words and str(Path.home()) not in words


def test_its_metadata_comes_back_as_it_was_written(run, tmp_path):
    cards.write(run, tmp_path / "README.md")
    content = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    name, results = model_index_to_eval_results(content["model-index"])
    scores = lorakit.Folder(run).scores
    assert name == "triage"
    assert {r.metric_type: r.metric_value for r in results} == {
        n: round(s["after"], 6) for n, s in scores.items()
    }
    again = ModelCard.load(tmp_path / "README.md")
    assert (
        again.data.to_dict() == cards.card(run).data.to_dict()
        and again.data.eval_results == results
    )


def test_a_base_of_the_hub_and_its_licence_are_named(run, tmp_path, monkeypatch):
    mine = Path(shutil.copytree(run, tmp_path / "mine"))
    settings = yaml.safe_load((mine / "run.yaml").read_text())
    for model, licence in (
        ("llama-3.2-1b", "llama3.2"),
        ("qwen3-0.6b", "apache-2.0"),
        ("phi-3-mini", "mit"),
        ("gemma-3-1b", "gemma"),
        ("opt-1.3b", "other"),
    ):
        (mine / "run.yaml").write_text(yaml.safe_dump(settings | {"model": model}))
        data = cards.card(mine).data
        assert (data.base_model, data.license) == (cards.base_model.spec(model).path, licence)
        assert (data.license_name is not None) == (licence == "other")


@pytest.mark.parametrize(
    "target, library",
    [
        ("adapter", "peft"),
        ("merged", "transformers"),
        ("gguf", "gguf"),
        ("onnx", "onnx"),
        (registry.names("export")[3], "mlx"),
    ],
)
def test_an_export_says_which_library_reads_it(run, exported, target, library):
    found = exporting.read(exported) | {"target": target}
    card = cards.card(run, found)
    assert card.data.library_name == library
    assert (
        f"{target}, fp32, " in card.text
        and "greedy answers are the tuned model's, token by token" in card.text
    )


# The hub


class Uploads(BaseHTTPRequestHandler):
    """What `create_repo` and `upload_folder` ask of the hub, and its check of a card's metadata."""

    hub: "StandIn"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token, path = self.headers.get("Authorization", ""), self.path
        if token != "Bearer hf_good":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            self.hub.made = json.loads(body)
            return self.answer(200, {"url": f"{self.hub.url}/me/triage", "id": "me/triage"})
        if path == "/api/validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            wrong = [k for k in ("license", "library_name", "tags") if not head.get(k)]
            return self.answer(
                400 if wrong else 200,
                {"errors": [{"message": f"{k} is missing"} for k in wrong], "warnings": []},
            )
        if "/preupload/" in path:
            return self.answer(
                200,
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in json.loads(body)["files"]
                    ]
                },
            )
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.files[line["value"]["path"]] = base64.b64decode(
                        line["value"]["content"]
                    )
                else:
                    self.hub.message = line["value"]["summary"]
            return self.answer(
                200,
                {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"{self.hub.url}/me/triage/commit/{'0' * 40}",
                },
            )
        return self.answer(404, {"error": path})

    def do_GET(self):
        self.answer(
            200, {"id": "me/triage", "sha": "0" * 40, "private": True, "siblings": [], "tags": []}
        )

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class StandIn:
    def __enter__(self):
        self.files, self.made, self.message = {}, None, ""
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (Uploads,), {"hub": self})
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def push(exported, url, token):
    """In a process of its own: huggingface_hub reads the endpoint when it is imported."""
    environment = child_environment() | {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "lorakit.cli", "push", str(exported), "me/triage"],
        text=True,
        capture_output=True,
        env=environment,
        timeout=120,
    )


def test_push_uploads_the_export_with_its_card(exported):
    with StandIn() as hub:
        done = push(exported, hub.url, "hf_good")
    assert done.returncode == 0 and "/me/triage" in done.stdout, done.stderr
    assert hub.made["name"] == "triage" and hub.made["visibility"] == "private"
    assert hub.message == "adapter fp32, exported and verified by lorakit"
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(hub.files)
    assert "export.json" not in hub.files  # it names folders of this machine
    assert hub.files["README.md"] == (exported / "README.md").read_bytes()
    assert (
        hub.files["adapter_model.safetensors"]
        == (exported / "adapter_model.safetensors").read_bytes()
    )


def test_a_refused_push_says_what_to_look_at(exported):
    with StandIn() as hub:
        done = push(exported, hub.url, "hf_bad")
    assert done.returncode == 1 and not hub.files
    assert (
        done.stderr.splitlines()[-1].startswith("lorakit: me/triage: ")
        and "HF_TOKEN" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_only_an_export_is_pushed(run, exported, capsys):
    with pytest.raises(LorakitError, match="is no exported folder; make one: lorakit export"):
        cards.push(run, "me/triage")
    with pytest.raises(LorakitError, match="triage: a place at the hub is called owner/name"):
        cards.push(exported, "triage")
    assert (
        cli.main(["push", str(run), "me/triage"]) == 1
        and "is no exported folder" in capsys.readouterr().err
    )


# The endpoint


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_the_endpoint_answers_as_the_tuned_model_does(run):
    port, question = free_port(), json.loads((run / "answers.jsonl").read_text().splitlines()[0])
    folder = RunFolder(run)
    always = {"figures": {"always": True, "threshold": None}, "weights": evidence.weights(folder)}
    evidence.keep(folder, evidence.Evidence("trust", "", True, **always))
    with (run / "serve.log").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "lorakit.cli", "serve", str(run), "--port", str(port)],
            stdout=log,
            stderr=log,
            env=child_environment() | {"HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
    try:
        for _ in range(600):
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5),
            ):
                break
            assert child.poll() is None, (run / "serve.log").read_text()
            time.sleep(0.5)
        asked = {
            "model": "merged-fp32",
            "max_tokens": 32,
            "temperature": 0,
            "messages": [{"role": "user", "content": question["prompt"]}],
        }
        call = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(call, timeout=60) as answer:
            said = json.load(answer)
        assert said["lorakit"]["ask_a_person"] is False and said["lorakit"]["log_probability"] < 0
        said = said["choices"][0]
        assert (
            said["message"]["content"].strip() == question["after"]
            and said["finish_reason"] == "stop"
        )
    finally:
        os.killpg(child.pid, 9)
        child.wait()
        folder.evidence("trust").unlink()
    assert (
        f"http://127.0.0.1:{port}/v1 answers as model 'merged-fp32'"
        in (run / "serve.log").read_text()
    )


def test_a_taken_port_is_said_before_anything_is_made(run, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", str(run), "--port", str(port)]) == 1
    assert f"port {port} of 127.0.0.1 cannot be taken" in capsys.readouterr().err

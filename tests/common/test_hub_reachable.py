"""Whether the hub can be reached is found in a moment, before its client tries six times."""

import socket
import time

import pytest

from lorakit.common import hub
from lorakit.common.errors import LorakitError
from lorakit.models import base_model


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)


def test_a_listening_address_is_reachable_and_a_closed_one_is_not(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        assert hub.reachable() is True
    hub._answers.cache_clear()
    assert hub.reachable() is False


def test_it_is_asked_once_a_process(monkeypatch):
    asked = []
    monkeypatch.setattr(hub.socket, "create_connection", lambda *a, **k: asked.append(a) or 1 / 0)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    with pytest.raises(ZeroDivisionError):
        hub.reachable()
    monkeypatch.setattr(
        hub.socket, "create_connection", lambda *a, **k: (_ for _ in ()).throw(OSError("no route"))
    )
    assert [hub.reachable(), hub.reachable()] == [False, False]
    assert asked == [(("hub.example", 443),)]


def test_offline_by_wish_and_a_proxy_are_not_tried(monkeypatch):
    monkeypatch.setattr(hub.socket, "create_connection", lambda *a, **k: pytest.fail("tried"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.reachable() is None
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "https://elsewhere.example")
    monkeypatch.setattr(hub.urllib.request, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert hub.reachable() is True


def test_what_was_not_downloaded_costs_no_attempts_without_the_hub(monkeypatch, capfd):
    """The hub's client would try six times, 23 s in all, and print each."""
    monkeypatch.setattr(hub, "reachable", lambda: False)
    import transformers.models.auto  # noqa: F401  (not part of what is timed)

    begun = time.monotonic()
    with pytest.raises(
        LorakitError, match=r"somebody/some-model.*could not be loaded|cannot be reached"
    ):
        base_model.config("somebody/some-model")
    assert time.monotonic() - begun < 15 and "Retrying" not in "".join(capfd.readouterr())


def test_a_folder_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("was asked"))
    assert hub.kept_only(str(tmp_path)) is False

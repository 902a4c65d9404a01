"""Whether the hub can be reached is found in a moment, before its client tries six times."""

import socket

import pytest

from lorakit.common import hub


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

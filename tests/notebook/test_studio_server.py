"""The studio's page as `make studio` serves it: nobody without its token gets a kernel, whatever name they come by."""

import http.client
import re
import shlex
import socket
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from helpers.paths import ROOT

pytest.importorskip("voila")


def options():
    """What the Makefile gives to Voila."""
    (words,) = re.findall(
        r"-m voila notebooks/studio\.ipynb ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text()
    )
    return shlex.split(words.replace("\\\n", " "))


def test_idle_kernels_are_ended():
    given = dict(option.lstrip("-").split("=", 1) for option in options())
    assert given["Voila.ip"] == "127.0.0.1"
    assert 0 < int(given["MappingKernelManager.cull_idle_timeout"]) <= 600
    assert 0 < int(given["MappingKernelManager.cull_interval"]) <= 60
    assert "MappingKernelManager.cull_connected" not in given  # one that a page shows stays


def asked(port, path, host):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Host": host, "Origin": f"http://{host}"})
    answer = connection.getresponse()
    return answer.status, answer.getheader("Location") or ""


@pytest.mark.slow
def test_without_the_token_no_kernel_starts(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "studio.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "voila", str(tmp_path / "studio.ipynb"), *options()]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(
            [*command, f"--port={port}", "--no-browser"], stdout=log, stderr=log, cwd=tmp_path
        )
    try:
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        for host in ("evil.example.com", f"127.0.0.1:{port}", "[::1]"):
            status, where = asked(port, "/", host)
            assert status == 403 or (status == 302 and "login" in where)
            for path in ("/api/kernels", "/api/kernels/0/channels", "/voila/files/studio.ipynb"):
                assert asked(port, path, host)[0] in (302, 400, 403, 404)
        assert psutil.Process(server.pid).children(recursive=True) == []
    finally:
        server.kill()
        server.wait()

"""No version that pyproject.toml admits has a known hole on a path that lorakit uses; the hosted images meet the floors."""

import importlib.util
import tomllib

from helpers.paths import ROOT

from lorakit.data.media import PICTURES
from lorakit.models import safety

spec = importlib.util.spec_from_file_location("audit", ROOT / "docs/audit.py")
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_no_floor_has_a_hole_that_is_reached():
    assert audit.open_holes(audit.floors(project())) == []


def test_an_older_version_is_found():
    (hole,) = audit.open_holes({"torch": "2.9.1"})
    assert (hole["id"], hole["version"]) == ("CVE-2026-24747", "2.9.1")
    assert audit.open_holes({"transformers": "5.0"}) == []  # closed in models/safety.py


def test_every_hole_says_by_what_it_is_reached_or_why_not():
    for hole in audit.holes():
        assert hole["reached"] or hole.get("why"), hole


def test_what_closes_a_hole_is_there():
    assert safety.check_template_names
    assert "PSD" not in PICTURES

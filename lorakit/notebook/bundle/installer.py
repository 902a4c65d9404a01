"""Installs lorakit from the bundle that this file lies in, without a network: copied into every bundle (`bundle.py`).

    python install_lorakit.py              what the notebook's first cell does
    python install_lorakit.py --verify     compares every file with the manifest

Stands alone: Python and pip are all it needs.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import urllib.parse
import urllib.request
from importlib import metadata
from pathlib import Path

MANIFEST = "bundle.json"
NAME = re.compile(
    r"[A-Za-z0-9]([\w.-]*\w)?", re.ASCII
)  # of a package, an extra; no option of pip, no address
VERSION = re.compile(r"\d[\w.+!-]*", re.ASCII)


def machine() -> tuple[str, str]:
    """("3.11", "linux_x86_64"): what compiled wheels have to fit."""
    return "{}.{}".format(*sys.version_info), sysconfig.get_platform().replace("-", "_").replace(
        ".", "_"
    )


def manifest(folder: Path) -> dict:
    """What `lorakit bundle` noted. Ends with a sentence when it cannot be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        lists = {key: list(map(str, found[key])) for key in ("extras", "needs", "lends")}
        files = {
            name: {"bytes": int(each["bytes"]), "sha256": str(each["sha256"])}
            for name, each in found["files"].items()
        }
        texts = {key: str(found[key]) for key in ("lorakit", "python", "platform")}
        refuse_names([name for some in lists.values() for name in some], texts["lorakit"], files)
        return {**texts, **lists, "files": files}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SystemExit(
            f"{folder / MANIFEST}: is no manifest of a bundle ({type(error).__name__}: {error}); copy or "
            "upload the bundle again"
        ) from None


def refuse_names(names: list[str], version: str, files: dict) -> None:
    """Raises `ValueError` for what pip would not read as a package or a version, and for files out of the bundle."""
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} names no package")
    if not VERSION.fullmatch(version):
        raise ValueError(f"{version!r} is no version")
    for name in files:
        if ".." in name.split("/") or name.startswith("/") or "\\" in name:
            raise ValueError(f"{name!r} lies outside of the bundle")


def flaws(folder: Path, files: dict) -> list[str]:
    """A line for every file that is not as it was packed, and for every wheel that was not packed.

    This finds damage and additions. The manifest itself is not signed: it cannot prove who made the bundle.
    """
    found = [
        f"{path.relative_to(folder).as_posix()}: was not packed; delete it"
        for path in sorted((folder / "wheels").rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in files
    ]
    for name, packed in files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name}: is missing")
        elif path.stat().st_size != packed["bytes"]:
            found.append(f"{name}: {path.stat().st_size:,} bytes, packed were {packed['bytes']:,}")
        elif digest(path) != packed["sha256"]:
            found.append(f"{name}: its content is not what was packed (SHA-256)")
    return found


def digest(path: Path) -> str:
    """SHA-256 in hex."""
    with open(path, "rb") as file:
        content = hashlib.sha256()
        while block := file.read(1 << 20):
            content.update(block)
        return content.hexdigest()


def lacking(names: list[str]) -> list[str]:
    """Those that are not installed here."""

    def there(name: str) -> bool:
        try:
            return bool(metadata.version(name))
        except metadata.PackageNotFoundError:
            return False

    return [name for name in names if not there(name)]


def install(folder: Path = Path(__file__).parent) -> str:
    """Installs what lorakit lacks here, or finds too old, from the bundle's wheels alone; returns a line that says so.

    Of what runs notebooks and draws in them only what is not here in any version, and no JupyterLab when a kernel asks:
    what shows the notebook stays as it is.
    Ends with the reason in words (`SystemExit`) when a wheel is damaged, something is missing that the bundle was made
    without, or the wheels do not fit this Python.
    """
    packed = manifest(folder)
    if broken := flaws(
        folder, {k: v for k, v in packed["files"].items() if k.startswith("wheels/")}
    ):
        raise SystemExit(
            "\n".join([f"{folder}: wheels are damaged; copy or upload the bundle again", *broken])
        )
    if missing := lacking(packed["needs"]):
        raise SystemExit(
            f"{', '.join(missing)} is not installed here, and this bundle was made without it. Install "
            "it, or make the bundle again with it: lorakit bundle … --without (nothing after it)"
        )
    lent = [
        name
        for name in lacking(packed["lends"])
        if name != "jupyterlab" or "ipykernel" not in sys.modules
    ]
    wanted = (
        "lorakit"
        + (f"[{','.join(packed['extras'])}]" if packed["extras"] else "")
        + f"=={packed['lorakit']}"
    )
    if said := install_hashed(folder, packed["files"], [wanted, *lent]):
        raise SystemExit("\n".join(refusal(folder, packed, said)))
    importlib.invalidate_caches()
    return f"{wanted} is installed from {folder}"


def install_hashed(
    folder: Path, files: dict, wanted: list[str], constraint: str = "", target: str = ""
) -> str:
    """Installs `wanted` from the bundle's wheels, each by the SHA-256 that the manifest names.

    pip first says which wheels it would take, then installs just these. Returns its last lines when it fails, else "".
    `constraint` and `target` are pip's.
    """
    offline = ["--no-index", f"--find-links={folder / 'wheels'}"]
    offline += [f"--target={target}"] if target else []
    limits = [f"--constraint={constraint}"] if constraint else []
    with tempfile.TemporaryDirectory() as scratch:
        report, pins = Path(scratch) / "report.json", Path(scratch) / "pins.txt"
        said = pip(*offline, *limits, "--dry-run", f"--report={report}", *wanted)
        if said:
            return said
        lines = []
        for each in json.loads(report.read_text(encoding="utf-8"))["install"]:
            path = urllib.parse.urlparse(each["download_info"]["url"]).path
            name = f"wheels/{Path(urllib.request.url2pathname(path)).name}"
            package = "{name}=={version}".format(**each["metadata"])
            lines.append(f"{package} --hash=sha256:{files[name]['sha256']}\n")
        pins.write_text("".join(lines), encoding="utf-8")
        return (
            pip(*offline, "--no-deps", "--require-hashes", f"--requirement={pins}") if lines else ""
        )


def pip(*arguments: str) -> str:
    """Runs `pip install`; returns its last lines when it fails, else an empty string."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.stdout if done.returncode else ""


def pin(files: dict) -> str:
    """SHA-256 of the names and the SHA-256 of all wheels: what the notebook of a bundle knows its bundle by."""
    wheels = {name: each["sha256"] for name, each in files.items() if name.startswith("wheels/")}
    return hashlib.sha256(json.dumps(wheels, sort_keys=True).encode()).hexdigest()


def refusal(folder: Path, packed: dict, said: str) -> list[str]:
    """pip's last words, and whether this machine is another than the one that the wheels are for."""
    words = [
        f"{folder}: pip could not install lorakit from these wheels:",
        *said.strip().splitlines()[-6:],
    ]
    theirs, here = (packed["python"], packed["platform"]), machine()
    other = kind(theirs[1]) != kind(here[1])
    if other or theirs[0] != here[0]:
        words.append(
            "The wheels are for Python {} on {}, this is Python {} on {}.".format(*theirs, *here)
            + f" Make the bundle again: lorakit bundle … --python {here[0]}"
            + (" --platform …" if other else "")
        )
    return words


def kind(platform: str) -> tuple[str, bool]:
    """System and whether it is ARM: manylinux_2_28_x86_64 is linux_x86_64."""
    return re.sub("^many", "", platform).rstrip("0123456789")[:5], platform.endswith(
        ("arm64", "aarch64")
    )


def main(arguments: list[str], folder: Path = Path(__file__).parent) -> None:
    if arguments not in ([], ["--verify"]):
        raise SystemExit(f"usage: {Path(__file__).name} [--verify]")
    if arguments:
        files = manifest(folder)["files"]
        if broken := flaws(folder, files):
            raise SystemExit(
                "\n".join([f"{folder}: {len(broken)} of {len(files)} files differ", *broken])
            )
        print(f"{folder}: {len(files)} files are as they were packed")
    else:
        print(install(folder))


if __name__ == "__main__":
    main(sys.argv[1:])

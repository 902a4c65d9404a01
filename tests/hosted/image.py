"""A virtual environment with the packages of Colab's or Kaggle's image: python image.py FOLDER colab|kaggle PYTHON

The lists are those of lorakit/assets/hosts/. Installed are the packages of packages.txt at these versions and, round by round, what they require and
the list holds. PYTHON is an interpreter of 3.13 for Colab, of 3.12 for Kaggle. Takes minutes and up to 8 GB.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LISTS = HERE.parents[1] / "lorakit/assets/hosts"
ROUNDS = 12
WANTED = r"""
import importlib.metadata as md, re, sys
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as name
lines = [line.strip() for line in open(sys.argv[1])]
frozen = {name(line.split("==")[0]): line for line in lines if "==" in line and " @ " not in line}
here = {name(d.metadata["Name"]): d for d in md.distributions() if d.metadata["Name"]}
wanted = {name(line.strip()) for line in open(sys.argv[2]) if line.strip()}
for each in here.values():
    for line in each.requires or ():
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            wanted.add(name(needed.name))
wanted = {n for n in wanted if n in frozen and n not in here}
print(*sorted(re.sub(r"\+cu\d+", "", frozen[n]) for n in wanted), sep="\n")
"""


def main(folder: str, which: str, python: str) -> None:
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = f"{folder}/bin/python"
    pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, "packaging", "pip==24.1.2"], check=True)
    failed: set[str] = set()
    for _ in range(ROUNDS):
        command = [inside, "-c", WANTED, str(LISTS / f"{which}.txt"), str(HERE / "packages.txt")]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        wanted = [w for w in said if w not in failed]
        if not wanted:
            break
        print(f"{len(wanted)} packages", flush=True)
        if subprocess.run([*pip, "--no-deps", *wanted]).returncode:
            for one in wanted:
                if subprocess.run([*pip, "--no-deps", one]).returncode:
                    failed.add(one)
    # What torch requires and no list names: Colab takes CUDA's libraries from its system.
    subprocess.run([*pip, "torch"], check=True)
    print("not to be had:", *sorted(failed))


if __name__ == "__main__":
    main(*sys.argv[1:])

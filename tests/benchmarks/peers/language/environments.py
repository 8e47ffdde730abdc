"""An environment for a peer whose requirements must not bring another torch.

Our packages are on its path before anything is installed, so pip finds our torch (a CPU build, where ours is one) and
takes it for granted; what the peer wants in another version it gets in its own folder, which goes first.
"""

from __future__ import annotations

import site
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[4]
BENCH = ROOT / ".bench"
# torch is ours. The other three are optional for a language model, and their builds for CUDA fail beside a torch without.
NOT_INSTALLED = frozenset({"torch", "torchvision", "torchaudio", "torchcodec"})


def wanted(requirements: Iterable[str]) -> list[str]:
    """Those that apply to this machine without any extra, less torch and its family; markers are evaluated away."""
    found = []
    for requirement in map(Requirement, requirements):
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name.lower() not in NOT_INSTALLED:
            requirement.marker = None
            found.append(str(requirement))
    return found


def environment(name: str, requirement: str, alias: str = "") -> Path:
    """The folder of programs of `.bench/name`, made when it is not there: the requirement and what `wanted` leaves of
    its own. alias: "name==version" under which the program looks for its own distribution.
    """
    folder = BENCH / name
    done = folder / f".{requirement}"
    if not done.exists():
        print(f"installing {requirement} into .bench/{name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        place = next(folder.glob("lib/python*/site-packages"))
        (place / "ours.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        python = folder / "bin/python"
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", requirement], check=True)
        subprocess.run([*pip, *wanted(_requires(python, requirement))], check=True)
        if alias:
            _named_too(place, alias)
        done.touch()
    return folder / "bin"


def _requires(python: Path, requirement: str) -> list[str]:
    code = "import importlib.metadata, sys; print(*importlib.metadata.requires(sys.argv[1]) or (), sep='\\n')"
    told = subprocess.run(
        [str(python), "-c", code, Requirement(requirement).name], check=True, capture_output=True, text=True
    )
    return told.stdout.splitlines()


def _named_too(place: Path, alias: str) -> None:
    """A second dist-info, for a build that is published under another name than the one it asks for itself by."""
    name, _, version = alias.partition("==")
    made = place / f"{name}-{version}.dist-info"
    made.mkdir(exist_ok=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

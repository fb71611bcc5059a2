"""`make licences`: docs/licences.md, the licences of everything that the kit installs.

Follows the requirements of pyproject.toml through the installed packages' metadata; what is
installed besides is left out.
"""

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Licences of the dependencies

Made by `make licences` from the metadata of the installed packages. The kit asks for those that are
called *direct*, and for *tests* only where its tests are run; the others came with them. They are
installed beside the kit and are no part of its wheel.

| package | version | licence | asked for |
|---|---|---|---|
"""


def name_of(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked() -> dict[str, tuple[Requirement, str]]:
    """What pyproject.toml asks for, by name, and whether for use ("direct") or for "tests"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, tuple[Requirement, str]] = {}
    for kind, texts in {"direct": [*project["dependencies"],
                                   *project["optional-dependencies"]["gguf"]],
                        "tests": project["optional-dependencies"]["test"]}.items():
        for requirement in map(Requirement, texts):
            found.setdefault(name_of(requirement.name), (requirement, kind))
    return found


def installed() -> dict[str, Distribution]:
    """All that these need and that is installed, by name."""
    queue = [(requirement, extra) for requirement, _ in asked().values()
             for extra in ("", *requirement.extras)]
    found: dict[str, Distribution] = {}
    seen = set()
    while queue:
        requirement, extra = queue.pop()
        key = name_of(requirement.name), extra
        if key in seen:
            continue
        seen.add(key)
        try:
            found[key[0]] = there = distribution(requirement.name)
        except PackageNotFoundError:  # of another system
            continue
        for needed in map(Requirement, there.requires or []):
            if not needed.marker or needed.marker.evaluate({"extra": extra}):
                queue += [(needed, more) for more in ("", *needed.extras)]
    return found


def licence(found: Distribution) -> str:
    """By its own expression, else its classifiers, else the first line of what it says."""
    about = found.metadata
    said = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or []
            if line.startswith("License :: ") and line != "License :: OSI Approved"]
    text = (about.get("License") or "").strip().split("\n")[0]
    plain = "" if len(text) > 60 or text == "UNKNOWN" else text
    return about.get("License-Expression") or ", ".join(said) or plain or _of_file(found)


def _of_file(found: Distribution) -> str:
    files = [file for file in found.files or [] if "licen" in file.name.lower()]
    return files[0].read_text().strip().split("\n")[0].strip() if files else "not stated"


def table() -> str:
    wanted = asked()
    return HEAD + "".join(
        f"| {name} | {found.version.partition('+')[0]} | {licence(found)} | "
        f"{wanted[name][1] if name in wanted else ''} |\n"
        for name, found in sorted(installed().items()))


if __name__ == "__main__":
    print(table(), end="")

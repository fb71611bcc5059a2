"""What is alike in all notebooks: `python notebooks/setup_cell.py` writes it into each.

That is the set-up cell, folded under its title; the links to the notebooks before and after, at the
top and at the end; a badge that opens the notebook on Colab; and the answers to predictions, folded
so that a reader can choose first.

Colab has to know where the kit is. For your own fork, name it in `pyproject.toml`:

    [project.urls]
    Repository = "https://github.com/<you>/<fork>"

and run this file. Without it there is no badge, and Colab installs the wheel (`make wheel`) that
was uploaded beside the notebook. Neither touches Colab's own torch and ipywidgets.
"""

import json
import re
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLAB = "https://colab.research.google.com"
CELL = '''
# @title Set-up: run this cell first
import glob
import importlib.util
import os
import subprocess
import sys
import warnings

ADDRESS = ""  # what pip installs on Colab; written by notebooks/setup_cell.py
if "google.colab" in sys.modules and not importlib.util.find_spec("secalign_kit"):
    wheel = max(glob.glob("secalign_kit-*.whl"), key=os.path.getmtime, default="")
    assert ADDRESS or wheel, "Upload the wheel that `make wheel` builds, or set ADDRESS; run again."
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*install, ADDRESS or wheel, "trl==1.16.*", "bitsandbytes"], check=True)
warnings.filterwarnings("ignore")
warnings.filterwarnings("default", module="secalign_kit")  # what the kit itself has to say
os.environ.update(TOKENIZERS_PARALLELISM="false", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
kit = importlib.import_module("secalign_kit")  # first: it silences remarks of its requirements
sys.path.append(os.path.join(kit.__path__[0], "_course"))  # checks.py, if it isn't here as well
'''.strip()
LINKS = "[All notebooks](README.md)"  # ends the line of links
FOLDED = "*Answers to predictions are folded: choose first, then click the dots below the cell.*"
OPEN, ANSWER = "open", "answer"  # tags: to be watched behind a prediction; an answer elsewhere


def repository(project: Path = HERE.parent / "pyproject.toml") -> str:
    """The kit's address, as pyproject names it; empty if it names none."""
    if not project.exists():
        return ""
    urls = tomllib.loads(project.read_text(encoding="utf-8"))["project"].get("urls", {})
    return urls.get("Repository", "").removesuffix("/").removesuffix(".git")


def setup(address: str) -> str:
    """The set-up cell for a repository's address, or for none."""
    return CELL.replace('ADDRESS = ""', f'ADDRESS = "git+{address}"') if address else CELL


def badge(name: str, address: str) -> str:
    """A line that opens a notebook on Colab; only GitHub's repositories can be opened there."""
    if not address.startswith("https://github.com/"):
        return ""
    path = address.removeprefix("https://github.com/")
    return (f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]"
            f"({COLAB}/github/{path}/blob/main/notebooks/{name}.ipynb)")


def links(name: str, titles: dict[str, str]) -> str:
    """The notebooks before and after one, in a line; `titles` has all names, in order."""
    names = list(titles)
    place = names.index(name)
    around = {"Before": names[place - 1 : place], "Next": names[place + 1 : place + 2]}
    parts = [f"{word}: [{titles[other]}]({other}.ipynb)"
             for word, found in around.items() for other in found]
    return " · ".join([*parts, LINKS])


def title(content: dict) -> str:
    """`04 · Prompts`, of a notebook that begins with `# 04 · Prompts: which token is whose`."""
    return re.match(r"# ([^:\n]+)", "".join(content["cells"][0]["source"]))[1].strip()


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _without_links(cell: dict) -> str:
    kept = [line for line in "".join(cell["source"]).split("\n")
            if not line.endswith(LINKS) and COLAB not in line and line != FOLDED]
    return "\n".join(kept).strip()


def folded(cells: list[dict]) -> list[dict]:
    """The code cells that answer a prediction: those directly behind it, and tagged ones."""
    found, asked = [], False
    for cell in cells:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "markdown":
            asked = "**Predict.**" in "".join(cell["source"])
        elif ANSWER in tags or (asked and OPEN not in tags):
            found.append(cell)
    return found


def written(name: str, content: dict, titles: dict[str, str], address: str) -> dict:
    """A notebook (nbformat 4) with all that is alike; it is changed in place and returned."""
    cells = content["cells"]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    first["source"] = _lines(setup(address))
    first["metadata"] |= {"cellView": "form", "jupyter": {"source_hidden": True}}
    answers = folded(cells)
    for cell in answers:
        cell["metadata"]["jupyter"] = {"outputs_hidden": True}
    top = [_without_links(cells[0]), FOLDED if answers else "", links(name, titles),
           badge(name, address)]
    cells[0]["source"] = _lines("\n\n".join(filter(None, top)))
    if cells[-1]["cell_type"] != "markdown":
        raise ValueError(f"{name} ends with a cell of code; end it with words")
    cells[-1]["source"] = _lines(f"{_without_links(cells[-1])}\n\n{links(name, titles)}")
    return content


def notebooks() -> dict[str, dict]:
    """The notebooks by name, in order."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(HERE.glob("*.ipynb"))}


if __name__ == "__main__":
    found = notebooks()
    named = {name: title(content) for name, content in found.items()}
    for name, content in found.items():
        text = json.dumps(written(name, content, named, repository()), indent=1, sort_keys=True,
                          ensure_ascii=False)
        (HERE / f"{name}.ipynb").write_text(text + "\n", encoding="utf-8")

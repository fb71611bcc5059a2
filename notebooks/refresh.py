"""Runs notebooks and keeps clean outputs: `python notebooks/refresh.py [01_samples ...]`.

Each runs from top to bottom in a fresh kernel; outputs are kept, except what does not belong into a
repository: widget views and their state, progress bars, timing metadata.
`--compare FOLDER` runs nothing and says where these notebooks differ from executed copies in
FOLDER: in numbers, by more than a tolerance (15%, or what `LEAST` says), and, on a machine like
that of the committed outputs (it is noted in them), in words. Texts in quotes, which models wrote,
may differ.
"""

import argparse
import re
import sys
from itertools import zip_longest
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?%?(?![\w])")
QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")
TOLERANCE = 0.15  # of a number: threads and processors round differently
# and at least so many units, by the kind of number, on a like machine or on another
LEAST = {True: {"%": 3.0, ".": 0.1, "": 3.0}, False: {"%": 5.0, ".": 0.5, "": 5.0}}


def cleaned(notebook):
    """The notebook without widgets (their static twins stay), bars on stderr and timings."""
    from secalign_kit.widgets import without_widgets

    notebook = without_widgets(notebook)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if keeps(output)]
    return notebook


def keeps(output) -> bool:
    return not (output.get("name") == "stderr" and "it/s]" in output.get("text", ""))


def machine() -> dict[str, str]:
    """What decides how products are rounded, and so which of two near words a model says."""
    from importlib.metadata import version

    import torch

    from secalign_kit.models import compute_dtype

    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return {"products": str(compute_dtype("cpu")) + " with AMX" * amx,
            "torch": version("torch").partition("+")[0]}


def run(path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3", store_widget_state=False,
                   resources={"metadata": {"path": str(HERE)}}).execute()
    notebook.metadata["secalign_kit"] = machine()
    nbformat.write(cleaned(notebook), path)


def printed(notebook) -> list[str]:
    """What each code cell printed or returned as text."""
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts.append("\n".join(_text(output) for output in cell.outputs if keeps(output)))
    return texts


def _text(output) -> str:
    data = output.get("data", {})
    return output.get("text") or data.get("text/markdown") or data.get("text/plain", "")


def differences(committed: Path, executed: Path) -> list[str]:
    """One line for each cell whose output is not that of the committed notebook."""
    old, new = (nbformat.read(path, as_version=4) for path in (committed, executed))
    alike = old.metadata.get("secalign_kit") == machine()
    found = []
    for number, texts in enumerate(zip(printed(old), printed(cleaned(new)), strict=True), 1):
        change = _change(*texts, alike)
        if change:
            found.append(f"{committed.stem}, code cell {number}: {change}")
    return found


def _change(old: str, new: str, alike: bool) -> str:
    """The first number, or word, that became another; empty if there is none."""
    for a, b in zip(NUMBER.findall(old), NUMBER.findall(new), strict=False):
        kind = "%" if "%" in a else "." if "." in a else ""
        x, y = (float(text.rstrip("%")) for text in (a, b))
        if abs(x - y) > max(LEAST[alike][kind], TOLERANCE * abs(x)):
            return f"{a} became {b}"
    if alike:
        for a, b in zip_longest(*map(_words, (old, new)), fillvalue="nothing"):
            if a != b:
                return f"{a!r} became {b!r}"
    return ""


def _words(text: str) -> list[str]:
    """The words of an output, without numbers, quoted texts and the dashes of tables."""
    return re.sub(r"[-=]{3,}", " ", NUMBER.sub("#", QUOTED.sub(" ", text))).split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="without .ipynb; all if none is given")
    parser.add_argument("--compare", type=Path)
    arguments = parser.parse_args()
    paths = [HERE / f"{name}.ipynb" for name in arguments.names] or sorted(HERE.glob("*.ipynb"))
    if arguments.compare is None:
        for path in paths:
            print(path.name, flush=True)
            run(path)
        return 0
    lines = [line for path in paths for line in differences(path, arguments.compare / path.name)]
    print("\n".join(lines) or "the committed outputs are true")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs notebooks and keeps clean outputs: `python notebooks/refresh.py [01_samples ...]`.

Each runs from top to bottom in a fresh kernel; outputs are kept, except what does not belong into a
repository: widget views and their state, progress bars, timing metadata.
`--compare FOLDER` runs nothing and says which numbers differ between these notebooks and executed
copies in FOLDER by more than the tolerance.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).resolve().parent
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w])")
TOLERANCE = 0.15  # of a number, and at least 3 units: threads and processors round differently


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


def run(path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3", store_widget_state=False,
                   resources={"metadata": {"path": str(HERE)}}).execute()
    nbformat.write(cleaned(notebook), path)


def printed(notebook) -> list[str]:
    """What each code cell printed or returned as text."""
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            parts = [o.get("text") or o.get("data", {}).get("text/plain", "")
                     for o in cell.outputs if keeps(o)]
            texts.append("\n".join(parts))
    return texts


def differences(committed: Path, executed: Path) -> list[str]:
    """One line for each cell whose numbers are not those of the committed notebook."""
    found = []
    both = [printed(nbformat.read(path, as_version=4)) for path in (committed, executed)]
    for number, (old, new) in enumerate(zip(*both, strict=True), 1):
        pairs = list(zip(NUMBER.findall(old), NUMBER.findall(new), strict=False))
        off = [(a, b) for a, b in pairs
               if abs(float(a) - float(b)) > max(3, TOLERANCE * abs(float(a)))]
        if off:
            found.append(f"{committed.stem}, code cell {number}: {off[0][0]} became {off[0][1]}")
    return found


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

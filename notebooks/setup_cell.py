"""The first code cell of every notebook, and the one place where the kit's address stands.

For your own fork: put what `pip install` takes (such as git+https://<host>/<you>/<fork>) into
ADDRESS below and run `python notebooks/setup_cell.py`, which writes the cell into every notebook.
With an empty ADDRESS, Colab installs the wheel (`make wheel`) that was uploaded beside the
notebook. Neither touches Colab's own torch and ipywidgets.
"""

import json
from pathlib import Path

CELL = '''
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


def write_setup(notebook: Path) -> None:
    """Puts CELL into the first code cell of a notebook; everything else stays as it is."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    first = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    first["source"] = CELL.splitlines(keepends=True)
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        write_setup(path)

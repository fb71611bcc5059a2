"""The wheel holds everything: installed outside the repository it runs the first notebook."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder with a virtual environment that has the wheel and borrows its requirements."""
    folder = tmp_path_factory.mktemp("elsewhere")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(
        ".*", "runs", "build", "dist", "*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
                    "--no-build-isolation", "--wheel-dir", folder, source], check=True)
    shutil.rmtree(source)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    site = Path(subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True).stdout.strip())
    # a path line adds the folder without its own .pth files, so no editable install shines through
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet",
                    "--no-deps", "--no-index", next(folder.glob("*.whl"))], check=True)
    return folder, python


def run(elsewhere, *arguments):
    folder, python = elsewhere
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "JUPYTER_PLATFORM_DIRS": "1"}
    return subprocess.run([python, *arguments], cwd=folder, env=environment, text=True,
                          capture_output=True, timeout=600)


def test_the_installed_package_brings_its_data(elsewhere):
    done = run(elsewhere, "-c", "import secalign_kit.samples as s; print(s.__file__, s.DATA);"
               "print(len(s.shipped_samples('heldout')))")
    assert done.returncode == 0, done.stderr
    places, count = done.stdout.splitlines()
    assert all(str(elsewhere[0]) in place for place in places.split())
    assert int(count) > 500


def test_a_notebook_that_is_opened_alone_finds_the_checks_in_the_wheel(elsewhere):
    cell = (ROOT / "notebooks" / "setup_cell.py").read_text().partition("CELL = '''")[2]
    done = run(elsewhere, "-c", cell.partition("'''")[0] + "\nimport checks\nprint(checks.__file__)"
               "\nprint(checks.check_judge(lambda response, witness: True))")
    assert done.returncode == 0, done.stderr
    place, verdict = done.stdout.splitlines()
    assert str(elsewhere[0]) in place and verdict.startswith("Not yet: the judge says yes")


def test_the_first_notebook_runs_there(elsewhere):
    folder, _ = elsewhere
    shutil.copy(ROOT / "notebooks" / "00_tour.ipynb", folder)
    code = ("import nbformat; from nbclient import NotebookClient;"
            "nb = nbformat.read('00_tour.ipynb', as_version=4);"
            "NotebookClient(nb, timeout=600, kernel_name='python3').execute();"
            "print('ran', sum(c.cell_type == 'code' for c in nb.cells))")
    done = run(elsewhere, "-c", code)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("ran ")

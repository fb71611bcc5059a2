"""The house rules: one source of versions, imports that flow one way, one home per library."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import secalign_kit

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "secalign_kit"
RIVER = ["visible", "markdown", "progress", "files", "samples", "english", "config", "injections",
         "frames", "pairs", "tokenization", "prompts", "chat_format", "roles", "adapters",
         "budget", "memory", "ranks", "fetch", "fused", "models", "preference", "shared_prefix",
         "generation", "logprobs", "parity", "adversary", "training", "defenses", "evaluation",
         "attackers", "figures", "report", "demo", "real", "studies", "toy", "application",
         "export", "widgets", "cli", "__main__"]
STORY = re.findall(r"^    (\w+)  +\w", secalign_kit.__doc__, re.M)  # as the kit tells it
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The kit's module that a file is or belongs to: a room is a folder with several files."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Top-level names of absolute imports, and `.name` for modules of the kit outside the room."""
    inside = len(path.relative_to(PACKAGE).parts)  # so many dots lead to the kit
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == inside:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {f".{name.split('.')[0]}" for name in names}
    return found


def read_by(notebook: Path) -> set[str]:
    """`.name` for every module of the kit that a notebook imports."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    nodes = [node for cell in cells if cell["cell_type"] == "code"
             for node in ast.walk(ast.parse("".join(cell["source"])))
             if isinstance(node, ast.ImportFrom)]
    found = set()
    for module, names in ((node.module.split("."), node.names) for node in nodes):
        if module[0] == "secalign_kit":
            found |= {f".{name}" for name in (module[1:2] or [alias.name for alias in names])}
    return found


NOTEBOOKS = {path.stem: read_by(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


@pytest.mark.parametrize("name", RIVER)
def test_a_stage_imports_only_what_stands_upstream(name):
    upstream = set(RIVER[: RIVER.index(name)])
    files = [path for path in MODULES if room(path) == name]
    own = {i[1:] for path in files for i in imports(path) if i.startswith(".")}
    assert files and own <= upstream, own - upstream


def test_every_module_has_its_place():
    assert {room(path) for path in MODULES} - {"__init__"} == set(RIVER)


@pytest.mark.parametrize("name", STORY)
def test_a_notebook_shows_each_stage_of_the_story(name):
    assert any(f".{name}" in found for found in NOTEBOOKS.values())


def test_the_story_flows_as_the_imports_do():
    assert len(STORY) >= 12 and STORY == [name for name in RIVER if name in STORY]


def test_no_notebook_borrows_from_a_command():
    commands = {f".{name}" for name in ("demo", "report", "cli", "__main__")}
    assert not {name: found & commands for name, found in NOTEBOOKS.items() if found & commands}


def test_every_module_has_a_test():
    modules = {room(path) for path in MODULES}
    modules |= {path.stem for path in MODULES if room(path) == "studies"}
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    assert modules - tested == {"__init__", "__main__", "studies"}


def test_the_readme_draws_every_module_in_the_order_of_imports():
    tree = (ROOT / "README.md").read_text().partition("```\nsecalign_kit/\n")[2].partition("```")[0]
    assert re.findall(r"^  (\w+)(?:\.py|/) ", tree, re.M) == RIVER
    inside = {path.stem for path in MODULES if room(path) in ("studies", "toy")}
    assert set(re.findall(r"^    (\w+)\.py ", tree, re.M)) == inside - {"__init__"}


@pytest.mark.parametrize(("library", "home"), [
    ("trl", "training"), ("matplotlib", "figures"), ("ipywidgets", "widgets"),
])
def test_a_heavy_library_has_one_home(library, home):
    assert {room(path) for path in MODULES if library in imports(path)} == {home}


@pytest.mark.parametrize("name", ["samples", "injections", "pairs", "config", "cli", "toy.world",
                                  "toy.corpus"])
def test_light_modules_do_not_load_torch(name):
    code = f"import sys, secalign_kit.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_pairs_are_made_without_torch_itself():
    assert "torch" not in imports(PACKAGE / "pairs.py")


def test_environment_takes_its_packages_from_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = [d for d in environment["dependencies"] if isinstance(d, dict)][0]["pip"]
    assert pip == ["-c constraints.txt", "-e .[test]"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"python {project['requires-python']}" in environment["dependencies"]


def test_every_direct_dependency_has_a_tested_version_within_its_range():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    wanted = [Requirement(r) for r in
              [*project["dependencies"], *project["optional-dependencies"]["test"]]]
    assert {r.name for r in wanted} == set(tested)
    assert all(r.specifier.contains(tested[r.name]) for r in wanted)


def test_the_wheel_lists_every_package_and_data_folder():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())
                 ["tool"]["setuptools"]["packages"])
    code = {".".join(p.parent.relative_to(ROOT).parts) for p in PACKAGE.rglob("__init__.py")
            if "_data" not in p.parts}
    data = {".".join(("secalign_kit", "_data", *p.relative_to(ROOT / "data").parts))
            for p in [ROOT / "data", *(ROOT / "data").rglob("*")] if p.is_dir()}
    assert listed == code | data | {"secalign_kit._course"}


def test_shipped_files_name_no_path_of_a_machine():
    for path in (ROOT / "data").rglob("*.json"):
        if path.name != "tokenizer.json":
            assert not re.search(r'"/\w+/', path.read_text()), path


def test_nothing_that_is_loaded_may_run_code_of_its_own():
    calls = [node for path in MODULES
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Call) and re.fullmatch(
                 r"Auto\w+\.from_pretrained", ast.unparse(node.func))]
    told = [{key.arg: ast.unparse(key.value) for key in call.keywords} for call in calls]
    assert len(told) >= 8 and {one.get("trust_remote_code") for one in told} == {"False"}


def test_no_weights_are_pickled_and_no_file_is_large():
    made = {".git", ".venv", ".venv-colab", "runs", "build", "dist"}  # not part of the repository
    files = [p for top in ROOT.iterdir() if top.name not in made
             for p in [top, *top.rglob("*")] if p.is_file()]
    assert not [p for p in files if p.suffix in (".pt", ".bin", ".pkl", ".pth")]
    assert not [p for p in files if p.stat().st_size > 12_000_000]
    for adapter in (ROOT / "data" / "adapters").iterdir():
        assert (adapter / "adapter_model.safetensors").stat().st_size <= 7_000_000  # of rank 64

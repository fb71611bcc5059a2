"""Committed notebooks are in order, light, true to themselves, and readable."""

import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pages
import pytest
import refresh
import setup_cell

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    assert request.param.stat().st_size < 400_000
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_format_is_current_and_cells_have_ids(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_cells_were_run_in_order_and_kept_their_outputs(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert any(cell.outputs for cell in code_cells(notebook))


def test_outputs_hold_no_stderr_no_bars_no_widget_state_no_paths(notebook):
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.get("name") != "stderr", output
            text = json.dumps(output)
            assert "widget-view" not in text and "it/s]" not in text
            assert "site-packages" not in text and '"/' not in text and "'/" not in text


def test_rhythm_cells_are_short_and_prose_comes_between(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert max(lengths) <= 20 and 1 <= statistics.median(lengths) <= 6
    assert len(notebook.cells) - len(lengths) >= 0.5 * len(lengths)


def test_a_prediction_is_asked_before_code_and_explained_behind_it(notebook):
    asked = [k for k, cell in enumerate(notebook.cells) if "**Predict.**" in cell.source]
    explained = [k for k, cell in enumerate(notebook.cells) if "**Why?**" in cell.source]
    assert any(notebook.cells[k + 1].cell_type == "code" and later > k + 1
               for k in asked for later in explained)
    assert not any("<summary>Why?" in cell.source for cell in notebook.cells)  # lessons stand open


def test_what_is_alike_in_all_notebooks_is_written_by_one_file(notebook, request):
    name = request.node.callspec.params["notebook"].stem
    found = setup_cell.notebooks()
    titles = {other: setup_cell.title(content) for other, content in found.items()}
    again = setup_cell.written(name, json.loads(json.dumps(found[name])), titles,
                               setup_cell.repository())
    assert again == found[name], "run python notebooks/setup_cell.py"
    assert code_cells(notebook)[0].metadata.jupyter.source_hidden


def test_answers_to_predictions_are_folded_and_what_is_to_be_watched_is_not():
    def cell(kind, text, *tags):
        return {"cell_type": kind, "source": [text], "metadata": {"tags": list(tags)}}

    cells = [cell("code", "set-up"), cell("markdown", "**Predict.** What?"), cell("code", "a"),
             cell("code", "b", "open"), cell("markdown", "Then"), cell("code", "c"),
             cell("code", "d", "answer")]
    assert [c["source"] for c in setup_cell.folded(cells)] == [["a"], ["d"]]


def test_a_badge_is_there_where_the_repository_is_known(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "x"\n')
    assert setup_cell.repository(project) == ""
    assert setup_cell.badge("00_tour", "") == "" and setup_cell.setup("") == setup_cell.CELL
    project.write_text('[project.urls]\nRepository = "https://github.com/me/fork.git"\n')
    address = setup_cell.repository(project)
    shown = setup_cell.badge("00_tour", address)
    assert "/github/me/fork/blob/main/notebooks/00_tour.ipynb" in shown
    assert 'ADDRESS = "git+https://github.com/me/fork"' in setup_cell.setup(address)
    assert setup_cell.badge("00_tour", "https://example.org/fork") == ""


@pytest.mark.parametrize("words", ["minutes to read", "machine time", "**Afterwards you can**",
                                   "**Before you start:**"])
def test_a_notebook_says_at_first_what_it_takes_and_gives(notebook, words):
    assert words in notebook.cells[0].source or "as long as you like" in notebook.cells[0].source


def test_a_notebook_ends_with_a_recap_and_exercises_of_three_levels(notebook):
    recap, _, exercises = notebook.cells[-1].source.partition("## Exercises")
    assert re.findall(r"^(?:## Recap|- )", recap, re.M) == ["## Recap", "- ", "- ", "- "]
    for level in ("Easy", "Medium", "Hard"):
        assert f"- *{level}.*" in exercises


def test_nothing_but_the_setup_cell_knows_of_colab_or_pip(notebook):
    for cell in code_cells(notebook)[1:]:
        assert "pip install" not in cell.source and "colab" not in cell.source


def test_the_sequence_has_no_gap_and_stands_in_the_course_with_its_minutes():
    course = (ROOT / "notebooks" / "README.md").read_text()
    numbers = [path.stem[:2] for path in NOTEBOOKS]
    assert numbers == [f"{k:02}" for k in range(len(numbers))]
    for path in NOTEBOOKS:
        line = next(x for x in course.splitlines() if x.startswith(f"| [{path.stem}]("))
        assert line.split("|")[2].strip()[0].isdigit(), line
    assert "(notebooks/README.md)" in (ROOT / "README.md").read_text()


def minutes(first_cell: str) -> int:
    """What a notebook's second line states in all: reading, exercise, machine time."""
    stated = first_cell.split("\n\n")[1].partition(" of machine time")[0]
    words = re.sub(r"\btwo\b", "2", re.sub(r"\ba minute\b", "1 minute", stated))
    return sum(map(int, re.findall(r"\d+", words)))


def test_a_teachers_table_has_the_minutes_that_the_notebooks_state():
    guide = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d\d) \|", guide, re.M)
    found = {path.stem[:2]: minutes(nbformat.read(path, as_version=4).cells[0].source)
             for path in NOTEBOOKS}
    assert minutes("# x\n\n*15 minutes to read, 5 for y · under a minute of machine time*") == 21
    assert {number: int(planned) for _, planned, number in rows} == found
    for session in "1234":
        assert 60 <= sum(int(planned) for place, planned, _ in rows if place == session) <= 90


def test_the_start_page_links_every_notebook_once_and_in_order():
    page = (ROOT / "notebooks" / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert [link for link in links if link.endswith(".ipynb")] == [p.name for p in NOTEBOOKS]
    assert all((ROOT / "notebooks" / link).exists() for link in links)


def test_lab_opens_the_start_page_rendered():
    recipe = (ROOT / "Makefile").read_text().partition("\nlab: $(STAMP)\n")[2].splitlines()[0]
    assert "--notebook-dir=notebooks" in recipe and "/lab/tree/README.md" in recipe
    path = ROOT / "notebooks/.jupyter/labconfig/default_setting_overrides.json"
    viewers = json.loads(path.read_text())["@jupyterlab/docmanager-extension:plugin"]
    assert viewers == {"defaultViewers": {"markdown": "Markdown Preview"}}


@pytest.mark.parametrize(("old", "new", "change"), [
    ("loss 0.70", "loss 1.30", "0.70 became 1.30"), ("loss 0.70", "loss 0.75", ""),
    ("loss 0.1", "loss 0.19", ""), ("15 words", "17 words", ""),
    ("ASR 0.0%", "ASR 7.0%", "0.0% became 7.0%"), ("ASR 0.0%", "ASR 1.0%", ""),
    ("a b", "a c", "'b' became 'c'"), ("a b", "a", "'b' became 'nothing'"),
    ("said 'fig'", "said 'harp, fig'", ""),
])
def test_on_a_like_machine_words_count_and_numbers_are_close(old, new, change):
    assert refresh._change(old, new, alike=True) == change
    number = change if "." in change else ""  # words are not compared there
    assert refresh._change(old, new, alike=False) == number


def test_the_setup_cell_installs_the_newest_wheel_on_colab(tmp_path, monkeypatch):
    commands = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the cell adds to it
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    cell = setup_cell.CELL
    with pytest.raises(AssertionError, match="Upload the wheel"):
        exec(cell, {})
    for age, name in ((9, "secalign_kit-0.1.0-py3-none-any.whl"), (1, "secalign_kit-0.0.9-x.whl")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    exec(cell, {})
    assert commands[0][1:] == ["-m", "pip", "install", "-q", "--no-deps",
                               "secalign_kit-0.0.9-x.whl", "trl==1.16.*", "bitsandbytes"]


def test_comparing_finds_a_number_that_is_not_true_any_more(tmp_path):
    path = NOTEBOOKS[0]
    assert refresh.differences(path, path) == []
    notebook = nbformat.read(path, as_version=4)
    cell = next(c for c in reversed(code_cells(notebook)) if "n=" in json.dumps(c.outputs))
    cell.outputs = [nbformat.from_dict(json.loads(json.dumps(output).replace("n=", "n=9")))
                    for output in cell.outputs]
    nbformat.write(notebook, tmp_path / path.name)
    assert len(refresh.differences(path, tmp_path / path.name)) == 1


def test_the_site_has_a_page_for_every_notebook_and_no_dead_link(tmp_path):
    made = {str(path.relative_to(tmp_path)) for path in pages.build(tmp_path)}
    assert {f"notebooks/{path.stem}.html" for path in NOTEBOOKS} < made and "index.html" in made
    for name in made:
        content = (tmp_path / name).read_text(encoding="utf-8")
        assert content.count("<h1") == 1, name
        for link in re.findall(r'<a href="(?!\w+:|#)([^"#]+)', content):
            assert ((tmp_path / name).parent / link).exists(), (name, link)
        assert not re.search(r"<img (?![^>]*alt=)", content), name
        for picture in re.findall(r'<img [^>]*src="(?!data:|https?:)([^"]+)', content):
            assert ((tmp_path / name).parent / picture).exists(), (name, picture)


def test_the_site_folds_what_a_notebook_folds_and_shows_hostile_text_as_text():
    made = nbformat.from_dict({"cell_type": "code", "source": "x = '<b>'", "outputs": [
        {"output_type": "stream", "text": "<script>alert(1)</script>"},
        {"output_type": "display_data", "data": {"image/png": "AAAA"},
         "metadata": {"image/png": {"alt": '"><script>', "width": 5}}}],
        "metadata": {"jupyter": {"outputs_hidden": True}}})
    shown = pages.cell(made)
    assert "Show the answer" in shown and "<script>" not in shown and "<b>" not in shown
    made.metadata = {}
    assert "<details>" not in pages.cell(made)
    linked = pages.words("[a](01_samples.ipynb) [b](../docs/gpu.md#x) [c](https://x.org/a.md)")
    assert 'href="01_samples.html"' in linked and 'href="../docs/gpu.html#x"' in linked
    assert 'href="https://x.org/a.md"' in linked


def test_the_site_sets_formulas_and_keeps_intervals_and_wide_pictures_whole():
    assert "inlineMath" in pages.page("x", "$$y$$ $z$") and "<script" not in pages.page("x", "$1")
    assert "50.0% [1.5,&nbsp;2.5]" in pages.words("50.0% [1.5, 2.5]")
    assert "[1.0, 2.0]" in pages.words("`x = [1.0, 2.0]`")  # code can be copied
    assert pages.words("![a](b.png)").count('<span class="scroll" tabindex="0"><img') == 1
    assert "scroll" not in pages.words("[![a](https://x.org/b.svg)](https://x.org)")

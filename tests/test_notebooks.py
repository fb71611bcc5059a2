"""Committed notebooks are in order, light, true to themselves, and readable."""

import json
import statistics
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))


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
            assert "site-packages" not in text and '"/' not in text


def test_rhythm_cells_are_short_and_prose_comes_between(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert max(lengths) <= 20 and 1 <= statistics.median(lengths) <= 6
    assert len(notebook.cells) - len(lengths) >= 0.5 * len(lengths)
    assert any("**Predict.**" in cell.source for cell in notebook.cells)

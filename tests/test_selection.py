"""The demo's recipe was chosen among candidates, on the validation split alone."""

import json
from pathlib import Path

import pytest

from secalign_kit import evaluation
from secalign_kit.config import recipe
from secalign_kit.studies import selection


def test_one_candidate_is_the_demos_recipe_and_all_can_be_made():
    chosen = recipe("demo")
    made = {name: chosen.replace(**changes) for name, changes in selection.CANDIDATES.items()
            if changes is not None}
    assert [name for name, config in made.items() if config == chosen] == [
        name for name in made if "(the demo's)" in name]
    assert len({json.dumps(vars(config), default=str) for config in made.values()}) == len(made)


def test_candidates_are_measured_without_the_held_out_test(tmp_path, monkeypatch, without_heldout):
    without_heldout(60)
    monkeypatch.setattr(selection, "CANDIDATES", {"insecure model": None, "a": {"batch_size": 16}})
    found = selection.select(tmp_path, n=2, n_pairs=32)
    assert list(found) == ["insecure model", "a"] and (tmp_path / "1" / "adapter").is_dir()
    for rates in found.values():
        assert rates["worst"]["n"] == 2 and rates["clean_utility"]["n"] == 60
        assert list(rates["right"]) == ["end", "start", "middle"]
    assert selection.markdown(found).count("\n") == 4
    monkeypatch.setattr(evaluation.responses, "_evaluate", None)  # nothing is asked twice
    assert selection.select(tmp_path, n=2, n_pairs=32) == found


@pytest.mark.parametrize("line", selection.markdown(
    json.loads(selection.SHIPPED.read_text())).splitlines())
def test_the_results_have_the_shipped_selection(line):
    assert line in (Path(__file__).parents[1] / "docs" / "results.md").read_text()

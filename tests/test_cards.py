"""A shipped adapter's card says what was measured, where injections stood, and by which recipe."""

import pytest

from secalign_kit import evaluation, models
from secalign_kit.config import RECIPES
from secalign_kit.injections import POSITIONS
from secalign_kit.studies import cards


def test_a_card_has_rates_at_every_place_and_the_recipe(secured, monkeypatch):
    whole = evaluation.evaluation_items
    monkeypatch.setattr(evaluation, "evaluation_items", lambda bundle, position: [
        item for item in whole(bundle, n=2, position=position) if item.attack != "retention"][-20:])
    text = cards.adapter_card("secalign", secured)
    elsewhere = set(POSITIONS) - {"end"}
    assert text.count("(n=2) |") == 2 * 5 + 5 * len(elsewhere)  # right only at the end
    assert all(f"| asr naive, injections {POSITIONS[place]} |" in text
               for place in elsewhere)
    assert (RECIPES / "secalign.yaml").read_text().strip() in text


@pytest.mark.parametrize("name", models.ADAPTERS)
def test_a_shipped_card_is_of_the_shipped_recipe(name):
    text = (models.ADAPTERS[name] / "README.md").read_text()
    assert f"# Adapter `{name}`" in text and (RECIPES / f"{name}.yaml").read_text().strip() in text


def test_an_adapter_that_is_not_shipped_is_refused():
    with pytest.raises(ValueError, match="choose secalign"):
        cards.make_adapter("demo")

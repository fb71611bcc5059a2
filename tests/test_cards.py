"""A shipped adapter's card says what was measured, where injections stood, and by which recipe."""

import pytest

from secalign_kit import evaluation, injections, models
from secalign_kit.config import RECIPES
from secalign_kit.studies import cards


def test_a_card_has_every_attack_at_every_place_and_the_recipe(secured):
    text = cards.adapter_card("secalign", secured, n=2)
    attacks = [*evaluation.ATTACKS, *injections.unseen_attacks("heldout")]
    assert "| attack | end | start | middle |" in text
    for attack in attacks:
        assert f"| {attack.replace('_', ' ')} | " in text
    assert "| all, another sample's request | " in text and f"(n={2 * len(attacks)})" in text
    assert (RECIPES / "secalign.yaml").read_text().strip() in text


@pytest.mark.parametrize("name", models.EMBEDDED)
def test_a_shipped_card_is_of_the_shipped_recipe(name):
    text = (models.ADAPTERS[name] / "README.md").read_text()
    assert f"# Adapter `{name}`" in text and (RECIPES / f"{name}.yaml").read_text().strip() in text


def test_an_adapter_that_is_not_shipped_is_refused():
    with pytest.raises(ValueError, match="choose secalign"):
        cards.make_adapter("demo")

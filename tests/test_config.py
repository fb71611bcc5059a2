"""One configuration class for YAML, notebook and command line."""

import pytest
import yaml

from secalign_kit.config import RunConfig, recipe, recipes


def test_yaml_gives_the_same_configuration_back(tmp_path):
    config = RunConfig(beta=0.3, lora_targets=("q_proj",), position="random")
    config.to_yaml(tmp_path / "run.yaml")
    assert RunConfig.from_yaml(tmp_path / "run.yaml") == config


def test_saved_pairs_are_named_and_nothing_is_said_of_how_they_were_made(tmp_path):
    config = recipe("secalign_random").on_saved_pairs("my/pairs", 8)
    config.to_yaml(tmp_path / "run.yaml")
    assert RunConfig.from_yaml(tmp_path / "run.yaml") == config
    said = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert (said["pairs"], said["n_pairs"]) == ("my/pairs", 8)
    assert not said.keys() & {"naive", "frames", "position", "clean", "responses"}
    assert config.position != recipe("secalign_random").position
    assert config.replace(position="random", responses="self") == config  # or a run refuses itself


def test_every_shipped_recipe_is_valid():
    assert recipes() == ["demo", "english", "english_undefended", "paper", "secalign",
                         "secalign_adaptive", "secalign_random", "struq"]
    real = [name for name in recipes() if recipe(name).model != "toy"]
    assert real == ["english", "english_undefended"] and not any(recipe(n).four_bit for n in real)
    assert recipe("english").model == f"smollm2-135m+{recipe('english_undefended').output}"


def test_an_unknown_recipe_is_refused_with_the_names():
    with pytest.raises(ValueError, match="secalign_random"):
        recipe("nope")


def test_text_from_the_command_line_takes_the_fields_type():
    config = RunConfig().replace(beta="0.2", n_pairs="64", four_bit="false", learning_rate="1e-4",
                                 lora_targets="[q_proj, v_proj]")
    assert (config.beta, config.n_pairs, config.four_bit) == (0.2, 64, False)
    assert config.learning_rate == 1e-4 and config.lora_targets == ("q_proj", "v_proj")


@pytest.mark.parametrize(("changes", "said"), [
    ({"betta": 1}, "did you mean beta"), ({"beta": 0}, "beta is 0"), ({"naive": 2.0}, "naive"),
    ({"position": "middle"}, "position"), ({"n_pairs": "many"}, "n_pairs"),
    ({"learning_rate": "fast"}, "learning_rate"), ({"sft_weight": -1}, "sft_weight"),
    ({"beta": "inf"}, "beta is inf"), ({"lora_targets": "[]"}, "empty"),
    ({"lora_targets": "q_proj"}, "lora_targets"), ({"beta": "[1"}, "no YAML"),
    ({"loss": "dppo"}, "no loss 'dppo'; did you mean dpo"), ({"loss": "rlhf"}, "choose one of dpo"),
    ({"responses": "mine"}, "choose one of samples, self"), ({"beside": "vectors"}, "beside"),
    ({"loss": "sft", "shared_prefix": False}, "for loss dpo or ipo"),
    ({"loss": "kto", "shared_prefix": False}, "for loss dpo or ipo"),
    ({"sft_weight": 1.0, "shared_prefix": False}, "without sft_weight"),
    ({"loss": "kto", "batch_size": 1}, "batch_size is 1"), ({"output": " "}, "output is empty"),
])
def test_bad_values_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        RunConfig().replace(**changes)


def test_every_preference_loss_has_a_name_in_the_configuration():
    from secalign_kit import config, preference

    assert set(config.LOSSES) == {*preference.LOSSES, "sft"}


def test_the_constructor_reads_values_as_replace_does():
    assert RunConfig(beta="0.2", lora_targets=["q_proj"]) == RunConfig().replace(
        beta=0.2, lora_targets="[q_proj]")
    with pytest.raises(ValueError, match="lora_targets"):
        RunConfig(lora_targets="q_proj")


@pytest.mark.parametrize(("text", "said"), [
    ("seed: 1\nbeta: [1", "run.yaml, line 2"), ("1: 2", "unknown setting '1'"),
    ("- 1", "no mapping"),
])
def test_a_bad_file_is_refused_in_one_sentence(tmp_path, text, said):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        RunConfig.from_yaml(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)

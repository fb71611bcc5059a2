"""Pre-training goes on where it was killed, and its tokenizer is the shipped one."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secalign_kit.samples import DATA
from secalign_kit.toy import pretrain
from secalign_kit.toy.pretrain import PretrainConfig

TINY = PretrainConfig(hidden=32, layers=1, heads=2, intermediate=48, steps=4, batch=8, pool=2,
                      warmup=1)


@pytest.fixture(autouse=True)
def shipped_tokenizer(monkeypatch, request):
    """Making the tokenizer takes seconds; one test makes it, the others read it."""
    if "makes_tokenizer" not in request.keywords:
        from transformers import AutoTokenizer

        monkeypatch.setattr(pretrain, "train_tokenizer",
                            lambda config: AutoTokenizer.from_pretrained(DATA / "model"))


@pytest.mark.makes_tokenizer
def test_the_seed_makes_the_shipped_tokenizer():
    from transformers import AutoTokenizer

    made, shipped = pretrain.train_tokenizer(PretrainConfig()), AutoTokenizer.from_pretrained(
        DATA / "model")
    assert made.get_vocab() == shipped.get_vocab()
    assert made.chat_template == shipped.chat_template
    text = "Is 'shelf' in the list? eagle, shelf. naïve 漢字"
    assert made(text)["input_ids"] == shipped(text)["input_ids"]


def test_a_killed_pre_training_ends_where_an_unbroken_one_ends(tmp_path):
    whole, _ = pretrain.pretrain(TINY, tmp_path / "whole", every=2)
    pretrain.pretrain(TINY, tmp_path / "broken", every=2, until=2)
    resumed, _ = pretrain.pretrain(TINY, tmp_path / "broken", every=2)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


def test_another_configuration_does_not_go_on_from_a_checkpoint(tmp_path):
    pretrain.pretrain(TINY, tmp_path, until=1)
    with pytest.raises(ValueError, match="another configuration"):
        pretrain.pretrain(dataclasses.replace(TINY, learning_rate=1e-3), tmp_path)


def test_what_is_saved_loads_as_any_model_does(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pretrain.pretrain(TINY, tmp_path, until=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == model.config.vocab_size
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt"))


@given(st.integers(1, 500), st.floats(0.1, 1.0), st.integers(1, 50))
def test_the_rate_warms_up_never_exceeds_its_peak_and_ends_near_zero(steps, decay, warmup):
    config = PretrainConfig(steps=steps, decay=decay, warmup=warmup)
    rates = [pretrain.rate_at(config, step) for step in range(steps)]
    assert all(0 < rate <= config.learning_rate for rate in rates)
    assert rates[-1] <= config.learning_rate / max(1.0, decay * steps) + 1e-12

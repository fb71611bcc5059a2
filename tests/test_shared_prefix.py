"""One sequence per pair gives the log-probs of two sequences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from secalign_kit import shared_prefix
from secalign_kit.preference import response_logprobs

IDS = st.lists(st.integers(5, 200), min_size=1, max_size=6)


def plain(model, prompt, response) -> float:
    """The specification: the response alone behind its prompt."""
    ids = torch.tensor([prompt + response])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    return response_logprobs(model(input_ids=ids).logits, labels)[1].item()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(IDS, IDS, IDS), min_size=1, max_size=4))
@torch.no_grad()
def test_shared_prefix_equals_two_sequences(toy, pairs):
    batch = shared_prefix.collate(pairs, pad=1)
    chosen, rejected = shared_prefix.pair_logprobs(toy.model, batch)
    for row, (p, c, r) in enumerate(pairs):
        torch.testing.assert_close(chosen[row].item(), plain(toy.model, p, c), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(rejected[row].item(), plain(toy.model, p, r), atol=1e-4,
                                   rtol=1e-5)


def test_the_rejected_response_does_not_see_the_chosen_one():
    batch = shared_prefix.collate([([1, 2, 3], [4, 5], [6])], pad=0)
    mask = batch["attention_mask"][0, 0]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3]]
    assert mask[5].tolist() == [True, True, True, False, False, True]
    assert mask[4].tolist() == [True, True, True, True, True, False]
    assert batch["source"].tolist() == [2, 3, 2] and batch["target"].tolist() == [4, 5, 6]


@pytest.mark.parametrize(("name", "value"), [("logits_scaling", 8.0), ("logit_scale", 0.06),
                                             ("final_logit_softcapping", 30.0)])
def test_a_model_that_changes_its_logits_after_the_head_is_refused(name, value):
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1, **{name: value})
    with pytest.raises(ValueError, match=f"after the head .{name}"):
        shared_prefix.decoder_and_head(LlamaForCausalLM(config))

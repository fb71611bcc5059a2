"""One sequence per pair gives the log-probs of two sequences."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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

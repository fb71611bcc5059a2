"""Where a GPU's memory runs out, the same is done in smaller parts, and only then."""

import pytest
import torch

from secalign_kit import generation, logprobs, memory, shared_prefix


def test_parts_are_halved_until_they_fit_and_stay_so():
    tried, done = [], []

    def function(part):
        tried.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.extend(part)

    with pytest.warns(UserWarning, match="too small for 8 at once; going on with 4"):
        memory.each([list(range(8)), list(range(8, 16)), [16]], function)
    assert done == list(range(17))
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 1]  # 8 and 4 are tried once


def test_other_errors_and_the_smallest_part_go_through():
    def function(part):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning):
        memory.each([[1, 2]], function)
    with pytest.raises(ZeroDivisionError):
        memory.each([[1, 2]], lambda part: 1 / 0)
    with pytest.raises(RuntimeError, match="size"):
        memory.each([[1, 2]], lambda part: torch.zeros(2) @ torch.zeros(3))
    assert memory.ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))


def limited(function, rows: int):
    """The function, for which more rows than that are too many."""
    def inside(model, ids, *args, **kwargs):
        if len(ids["input_ids"] if isinstance(ids, dict) else ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(model, ids, *args, **kwargs)

    return inside


def test_responses_and_log_probs_are_the_same_in_halves(toy, monkeypatch):
    prompts = [[10 + k, 12, 13] * (2 + k % 3) + [20 + j] for k in range(4) for j in range(3)]
    keys = [k for k in range(4) for _ in range(3)]
    pairs = [dict(prompt_ids=ids, chosen_ids=[30, 31], rejected_ids=[32]) for ids in prompts]
    options = dict(max_new_tokens=6, keys=keys, pays=1)
    whole = generation.greedy(toy, prompts, **options), logprobs.score_pairs(toy, pairs)
    monkeypatch.setattr(shared_prefix, "extend", limited(shared_prefix.extend, 2))
    monkeypatch.setattr(shared_prefix, "pair_logprobs", limited(shared_prefix.pair_logprobs, 5))
    with pytest.warns(UserWarning, match="12 at once; going on with 6"):
        halves = generation.greedy(toy, prompts, **options), logprobs.score_pairs(toy, pairs)
    assert halves[0] == whole[0]
    torch.testing.assert_close(halves[1], whole[1])

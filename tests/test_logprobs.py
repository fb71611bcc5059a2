"""The shift is measured on one model, and its parts add up."""

import pytest

from secalign_kit import logprobs, training
from secalign_kit.samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD


def test_token_differences_sum_to_the_response_shift(secured, tiny_config):
    dataset = training.probe_pairs(tiny_config, "validation", 6)
    table = logprobs.shift_table(secured, dataset)
    assert len(table) == 6 and (table[["chosen_before", "rejected_after"]] <= 0).all().all()
    first = dataset[0]
    tokens = logprobs.token_table(
        secured, first["prompt"][0]["content"], first["prompt"][1]["content"],
        first["chosen"][0]["content"], first["rejected"][0]["content"],
    )
    sums = tokens.groupby("response")[["before", "after"]].sum()
    for side in ("chosen", "rejected"):
        for when in ("before", "after"):
            assert sums.loc[side, when] == pytest.approx(table.loc[0, f"{side}_{when}"], abs=1e-2)


def test_the_diagram_in_numbers_the_preference_turns(secured):
    tokens = logprobs.token_table(
        secured, DINOSAUR_HOST.instruction, f"{DINOSAUR_HOST.data} {DINOSAUR_PAYLOAD.request}",
        DINOSAUR_HOST.answer, DINOSAUR_PAYLOAD.answer,
    )
    sums = tokens.groupby("response")[["before", "after"]].sum()
    chosen, rejected = sums.loc["chosen"], sums.loc["rejected"]
    assert rejected["before"] > chosen["before"] and chosen["after"] > rejected["after"]
    assert chosen["after"] > chosen["before"] and rejected["after"] < rejected["before"]


def test_scores_from_the_prompts_cache_are_those_of_whole_sequences(toy, tiny_config):
    rows = logprobs.encode_pairs(toy, training.probe_pairs(tiny_config, "validation", 9), 512)
    prompts = [row["prompt_ids"] for row in rows]
    responses = [[row["chosen_ids"], row["rejected_ids"], row["chosen_ids"]] for row in rows]
    responses[4] = responses[4][:1]
    scores = logprobs.score_responses(toy, prompts, responses, batch_size=4)
    chosen, rejected = logprobs.score_pairs(toy, rows)
    for k, found in enumerate(scores):
        wanted = [chosen[k], rejected[k], chosen[k]][: len(found)]
        assert found == pytest.approx([float(x) for x in wanted], abs=1e-3)
    assert [len(found) for found in scores] == [3, 3, 3, 3, 1, 3, 3, 3, 3]


def test_scoring_refuses_what_it_cannot_score(toy):
    with pytest.raises(ValueError, match="fewer than two tokens"):
        logprobs.score_responses(toy, [[5]], [[[6]]])
    with pytest.raises(ValueError, match="no tokens"):
        logprobs.score_responses(toy, [[5, 6]], [[[]]])


def test_a_prompt_without_responses_takes_nothing_from_its_neighbours(toy):
    prompts, response = [[5, 6, 7], [8, 9]], [10, 11]
    alone = logprobs.score_responses(toy, prompts[:1], [[response, response[:1]]])
    assert logprobs.score_responses(toy, prompts, [[response, response[:1]], []]) == [
        pytest.approx(alone[0], abs=1e-4), []]
    assert logprobs.score_responses(toy, prompts, [[], []]) == [[], []]


def test_what_is_longer_than_the_models_positions_is_not_scored(toy):
    with pytest.raises(ValueError, match="prompt 0 takes 1,026 tokens .* 1,024 positions"):
        logprobs.score_responses(toy, [[5] * 1024], [[[6, 7]]])

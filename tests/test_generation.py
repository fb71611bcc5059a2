"""Fast greedy decoding gives the tokens of the slow one, whatever is shared, dropped or stopped."""

import pytest
import torch

from secalign_kit import (
    evaluation,
    generation,
    injections,
    logprobs,
    models,
    pairs,
    prompts,
    samples,
    shared_prefix,
)


@pytest.fixture(scope="module")
def items(toy):
    hosts = samples.shipped_samples("validation")[:26]
    witness = injections.WITNESS["validation"]
    found = evaluation.clean_items(hosts)
    for attack in evaluation.ATTACKS:
        found += evaluation.attacked_items(hosts, attack, witness, toy, split="validation",
                                           position="random")
    return found


@pytest.fixture(scope="module")
def encoded(toy, items):
    return [prompts.encode(toy.tokenizer, toy.format, i.instruction, i.data).ids for i in items]


@pytest.fixture(scope="module")
def alone(toy, encoded):
    """Each prompt by itself through transformers' own `generate`."""
    end = toy.tokenizer.convert_tokens_to_ids(toy.format.end)
    responses = []
    for ids in encoded:
        out = toy.model.generate(input_ids=torch.tensor([ids]), max_new_tokens=24, do_sample=False,
                                 attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                                 pad_token_id=toy.tokenizer.pad_token_id, eos_token_id=end)
        response = out[0, len(ids):].tolist()
        responses.append(response[: response.index(end)] if end in response else response)
    return responses


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("shared", [False, True])
def test_responses_are_those_of_one_by_one_generation(toy, items, encoded, alone, batch_size,
                                                      shared):
    keys = [item.id for item in items] if shared else None
    assert generation.greedy(toy, encoded, 24, batch_size, keys, pays=0) == alone


def test_prompts_are_shared_where_that_saves_enough():
    start = list(range(60))
    prompts = [[*start, 1], [*start, 2, 3], [*start, 4], [5, 6, 7], [5, 6, 8]]
    for pays, shared in ((0, [60, 2]), (20, [60, 0, 0]), (40, [60, 0, 0]), (41, [0] * 5)):
        groups = generation._groups(prompts, [0, 0, 0, 1, 1], 64, pays)
        assert [group.shared for group in groups] == shared
        assert sorted(row for group in groups for row in group.rows) == [0, 1, 2, 3, 4]


def test_a_settled_row_stops_and_leaves_the_others_alone(toy, encoded, alone):
    odd = generation.greedy(toy, encoded, 24, settled=lambda row, ids: row % 2 and len(ids) == 2)
    for row, (short, full) in enumerate(zip(odd, alone, strict=True)):
        assert short == (full[:2] if row % 2 else full)


def test_models_whose_caches_cannot_be_copied_give_and_stop_alike(encoded, alone):
    bundle = models.load("toy", four_bit=False)
    with pytest.warns(UserWarning, match="computed apart"):
        shared_prefix.separate(bundle.model, "for a test")
    own = bundle.model.generation_config
    own.no_repeat_ngram_size = 1  # a published model may bring such things
    assert generation.greedy(bundle, encoded[::3], 24, 8) == alone[::3]
    odd = generation.greedy(bundle, encoded, 24, settled=lambda row, ids: row % 2 and len(ids) > 1)
    assert odd == [full[:2] if row % 2 else full for row, full in enumerate(alone)]
    assert bundle.model.generation_config is own


def test_an_empty_prompt_is_refused(toy):
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generation.greedy(toy, [[5], []])


def test_the_common_start_leaves_a_token_to_each():
    assert generation._common([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert generation._common([[1, 2], [1, 2, 3]]) == 1
    assert generation._common([[1, 2], [1, 2]]) == 1
    assert generation._common([[1], [2]]) == 0


def test_verdicts_decided_early_are_the_verdicts_of_the_whole_response(toy, items):
    whole = evaluation.evaluate(toy, items, max_new_tokens=24)
    early = evaluation.evaluate(toy, items, max_new_tokens=24, verdict_only=True)
    assert [r["obeyed"] for r in whole] == [r["obeyed"] for r in early]
    assert {r["obeyed"] for r in whole} == {True, False}
    for one, other in zip(whole, early, strict=True):
        assert one["response"].startswith(other["response"])
        assert other["right"] == (None if other["witness"] else one["right"])
    assert sum(len(r["response"]) for r in early) < sum(len(r["response"]) for r in whole)


def test_own_answers_that_do_not_end_are_emptied(toy):
    texts = [s for s in samples.shipped_samples("validation") if len(s.answer) > 20][:3]
    whole = generation.own_answers(toy, texts)
    assert all(own.answer for own in whole)
    cut = generation.own_answers(toy, texts, max_new_tokens=3)
    assert [own.answer for own in cut] == [""] * 3


def test_a_prompt_beyond_the_models_positions_is_refused(toy):
    with pytest.raises(ValueError, match="prompt 1 takes 1,030 tokens .* 1,024 positions"):
        generation.greedy(toy, [[5], [5] * 1000], max_new_tokens=30)


def test_own_answers_are_kept_and_a_killed_call_goes_on(toy, secured, tmp_path, monkeypatch):
    texts, cache = samples.shipped_samples("validation")[:5], tmp_path / "own.jsonl"
    monkeypatch.setattr(generation, "ANSWERS", 2)
    wanted = generation.own_answers(toy, texts, cache=cache)
    lines = cache.read_text().splitlines(keepends=True)
    assert len(lines) == 5 and wanted == generation.own_answers(toy, texts)
    cache.write_text("".join(lines[:3]) + lines[3][:7])  # as a kill leaves it
    asked = []
    greedy = generation.greedy
    monkeypatch.setattr(generation, "greedy", lambda bundle, prompts, *rest: asked.extend(
        prompts) or greedy(bundle, prompts, *rest))
    assert generation.own_answers(toy, texts, cache=cache) == wanted and len(asked) == 2
    assert generation.own_answers(toy, texts, cache=cache) == wanted and len(asked) == 2
    assert sorted(cache.read_text().splitlines(keepends=True)) == sorted(lines)
    generation.own_answers(secured, texts, cache=cache)  # other weights
    assert len(asked) == 7


def test_a_cut_answer_that_is_kept_is_marked_and_gets_no_end_token(toy):
    texts = samples.shipped_samples("validation")[:8]
    kept = generation.own_answers(toy, texts, max_new_tokens=3, keep_cut=True)
    emptied = generation.own_answers(toy, texts, max_new_tokens=3)
    assert {s.cut for s in kept} == {True, False}
    for one, other in zip(kept, emptied, strict=True):
        assert one.answer and (other.answer == "") == one.cut and not other.cut
    rows = logprobs.encode_pairs(toy, pairs.pairs_dataset(kept, seed=0, n=8), 256)
    cut = {s.answer for s in kept if s.cut}
    end = toy.tokenizer.convert_tokens_to_ids(toy.format.end)
    ends = [ids[-1] == end for row in rows for ids in (row["chosen_ids"], row["rejected_ids"])]
    texts = [message[0]["content"] for pair in pairs.pairs_dataset(kept, seed=0, n=8)
             for message in (pair["chosen"], pair["rejected"])]
    assert ends == [text not in cut for text in texts] and {*ends} == {True, False}

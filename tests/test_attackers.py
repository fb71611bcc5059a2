"""Attackers: losses and gradients against plain passes, text against ids, and some that succeed."""

from dataclasses import replace

import pytest
import torch

from secalign_kit import attackers, evaluation, injections, models, prompts, shared_prefix
from secalign_kit.attackers import blanks
from secalign_kit.attackers.gcg import exchanges
from secalign_kit.attackers.queries import Queries
from secalign_kit.samples import shipped_samples

HOSTS = [s for s in shipped_samples("validation") if len(s.data.split()) > 3][:6]
WITNESS = injections.WITNESS["validation"]


def items(bundle, position="end", target="witness"):
    options = dict(split="validation", position=position)
    if target == "payload":
        return evaluation.payload_items(HOSTS, "naive", bundle, **options)
    return evaluation.attacked_items(HOSTS, "naive", WITNESS, bundle, **options)


def plain_loss(bundle, blank, fill) -> float:
    found = shared_prefix.plain_logprobs(bundle.model, blank.row(fill), blank.target)
    return -found.sum().item()


def neighbours(bundle, blank, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.tensor(blank.first).repeat(count, 1)
    usable = torch.tensor(blanks.tokens(bundle))
    at = torch.randint(blank.size, (count,), generator=generator)
    rows[range(count), at] = usable[torch.randint(len(usable), (count,), generator=generator)]
    return rows


@pytest.mark.parametrize("side", blanks.SIDES)
@pytest.mark.parametrize("position", ["end", "start", "middle"])
@pytest.mark.parametrize("target", ["witness", "payload"])
def test_a_blank_stands_beside_the_payload_and_is_read_as_its_ids(toy, side, position, target):
    for item in items(toy, position, target):
        blank = blanks.make(toy, item, side, 5)
        attacked = blank.attacked(blank.first)
        left, right = blank.texts(blank.first)
        payload = item.data[item.start : item.end]
        text = attacked.data[attacked.start : attacked.end]
        assert text == (left + " " if left else "") + payload + right
        assert bool(left) == (side != "suffix") and bool(right) == (side != "prefix")
        assert len(blank.slots) == 5 and attacked.data.endswith(item.data[item.end :])
        read = prompts.encode(toy.tokenizer, toy.format, item.instruction, attacked.data)
        assert read.ids == blank.row(blank.first)
        assert [read.ids[k] for k in blank.slots] == list(blank.first)
        assert {read.roles[k] for k in blank.slots} == {"data"}


def test_the_filter_refuses_ids_that_text_cannot_say(toy):
    blank = blanks.make(toy, items(toy)[0], size=3)
    split = toy.tokenizer.convert_tokens_to_ids(["Ġ", "x", "x"])  # is read as one token " x"
    assert not blank.holds(split)
    assert blank.encoded(split) != blank.row(split)
    delimiter = toy.tokenizer.convert_tokens_to_ids("<data_delimiter>")
    assert delimiter not in blanks.tokens(toy)
    assert not blank.holds([delimiter] * 3)  # the front end deletes its text


def test_fills_that_are_asked_are_different_and_survive_the_filter(toy):
    blank = blanks.make(toy, items(toy)[0], size=4)
    generator = torch.Generator().manual_seed(0)
    usable = torch.tensor(blanks.tokens(toy))

    def draw(count):
        return usable[torch.randint(len(usable), (count, 4), generator=generator)]

    fills = attackers.search.distinct(blank, draw, 20).tolist()
    assert len(fills) == 20 == len(set(map(tuple, fills))) and all(map(blank.holds, fills))
    assert not all(map(blank.holds, draw(100).tolist()))
    assert len(attackers.search.distinct(blank, lambda n: torch.tensor([fills[0]] * n), 9)) == 1


@pytest.mark.parametrize("side", blanks.SIDES)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("present", [False, True])
def test_losses_are_those_of_plain_forward_passes(toy, side, groups, present):
    for item in (items(toy, "middle")[0], items(toy, "end", "payload")[1]):
        blank = blanks.make(toy, item, side, 6)
        queries = Queries(blank, groups=groups, rows=5)
        fills = neighbours(toy, blank, 13)
        fills[3] = torch.tensor(blank.first)
        if present:
            queries.stand_on(blank.first)
        loss, said = queries.losses(fills)
        assert queries.count == 13
        for fill, found, would in zip(fills.tolist(), loss.tolist(), said.tolist(), strict=True):
            assert found == pytest.approx(plain_loss(toy, blank, fill), abs=1e-3)
            every = shared_prefix.plain_logprobs(toy.model, blank.row(fill), blank.target, True)
            assert would == (every.argmax(-1).tolist() == list(blank.target))


def test_a_model_without_exact_caches_is_read_whole(toy, monkeypatch):
    blank = blanks.make(toy, items(toy)[0], size=6)
    monkeypatch.setattr(shared_prefix, "sharing", lambda model: shared_prefix.Sharing(False, False))
    queries = Queries(blank)
    slope = queries.gradient(blank.first)
    fills = neighbours(toy, blank, 5)
    loss, _ = queries.losses(fills)
    assert loss.tolist() == pytest.approx([plain_loss(toy, blank, f) for f in fills.tolist()],
                                          abs=1e-3)
    monkeypatch.undo()
    assert torch.allclose(slope, Queries(blank).gradient(blank.first), atol=1e-3)


def test_the_gradient_is_that_of_a_plain_pass_through_one_hot_rows(toy):
    blank = blanks.make(toy, items(toy, "middle")[1], "around", 6)
    table = toy.model.get_input_embeddings().weight.detach()
    ids = torch.tensor([*blank.row(blank.first), *blank.target])
    one_hot = torch.nn.functional.one_hot(ids, len(table)).float().requires_grad_()
    logits = toy.model(inputs_embeds=(one_hot @ table)[None]).logits[0].log_softmax(-1)
    size = len(blank.target)
    (-logits[-size - 1 : -1].gather(1, ids[-size:, None]).sum()).backward()
    found = Queries(blank).gradient(blank.first)
    assert torch.allclose(found, one_hot.grad[list(blank.slots)], atol=1e-3)


def test_tokens_chosen_by_gradient_lower_the_loss_more_than_any_others(toy):
    blank = blanks.make(toy, items(toy)[0], size=4)
    queries, usable = Queries(blank), blanks.tokens(toy)
    best = exchanges(queries.gradient(blank.first), blank.first, usable, 16,
                     torch.Generator().manual_seed(0))(48)
    changed = (best != torch.tensor(blank.first)).sum(1)
    assert set(changed.tolist()) <= {0, 1}
    blind = neighbours(toy, blank, 48)
    assert queries.losses(best)[0].mean() < queries.losses(blind)[0].mean()
    every = torch.tensor(blank.first).repeat(len(usable), 1)
    every[:, 2] = torch.tensor(usable)  # brute force in one slot
    order = queries.losses(every)[0].argsort().tolist()
    slope = queries.gradient(blank.first)[2, usable].argsort()[:16].tolist()
    assert sum(order.index(k) for k in slope) / 16 < len(usable) / 3


@pytest.mark.parametrize("name", attackers.ATTACKERS)
def test_an_attacker_beats_the_insecure_model_by_its_text_alone(toy, name):
    item = items(toy, "start")[0]
    outcome = attackers.ATTACKERS[name](toy, item, attackers.Budget(12, 24), seed=1)
    assert outcome.obeyed and outcome.steps <= 12 and outcome.queries <= 1 + 24 * 12
    asked = replace(outcome.item, attack="naive")
    record, = evaluation.evaluate(toy, [asked], verdict_only=True)
    assert record["obeyed"] and record["response"] == outcome.response
    assert outcome.text in outcome.item.data and WITNESS.instruction in outcome.text


@pytest.mark.parametrize("name", attackers.ATTACKERS)
def test_the_same_seed_finds_the_same_and_the_global_one_is_not_touched(secured, name):
    item = items(secured)[0]

    def found(seed):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        outcome = attackers.ATTACKERS[name](secured, item, attackers.Budget(2, 12), seed=seed)
        assert torch.equal(before, torch.random.get_rng_state())
        return replace(outcome, seconds=0.0)

    assert found(3) == found(3) != found(4)


def test_a_search_of_fewer_steps_is_the_beginning_of_a_longer_one(secured):
    item = items(secured)[1]
    short, long = (attackers.gcg(secured, item, attackers.Budget(steps, 12)) for steps in (1, 3))
    assert long.losses[: len(short.losses)] == short.losses and len(short.losses) == 2
    assert min(long.losses) == long.loss
    again = attackers.gcg(secured, item, attackers.Budget(0, 12), start=long.fill)
    assert again.losses == pytest.approx([long.loss], abs=1e-3) and again.text == long.text


def test_watching_says_loss_and_text_of_each_step(secured):
    seen = []
    outcome = attackers.gcg(secured, items(secured)[0], attackers.Budget(2, 8), watch=seen.append)
    assert [step.number for step in seen] == [0, 1, 2]
    assert tuple(step.loss for step in seen) == outcome.losses
    assert [step.queries for step in seen] == [1, 9, 17]
    assert outcome.item in [step.item for step in seen]


def test_the_weights_are_as_they_were(secured):
    before = models.weights_hash(secured)
    attackers.gcg(secured, items(secured)[0], attackers.Budget(1, 4))
    assert models.weights_hash(secured) == before


def test_what_cannot_be_attacked_is_refused(toy):
    clean, = evaluation.clean_items(HOSTS[:1])
    item = items(toy)[0]
    with pytest.raises(ValueError, match="has no injection"):
        blanks.make(toy, clean)
    with pytest.raises(ValueError, match="side 'left' is unknown"):
        blanks.make(toy, item, "left")
    with pytest.raises(ValueError, match="has none for each"):
        blanks.make(toy, item, "around", 1)
    with pytest.raises(ValueError, match="is none; give"):
        attackers.Budget(5, 0)

"""The attacker in the loop does what its plain specification does, and a run with it goes on."""

import contextlib
import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_shared_prefix import EXACT, tiny
from test_training import away_from_the_reference, loss_of

from secalign_kit import adversary, logprobs, models, shared_prefix, training
from secalign_kit.config import ADVERSARY_PLACES, RunConfig
from secalign_kit.samples import DINOSAUR_HOST, DINOSAUR_PAYLOAD, Sample


@pytest.fixture
def config(tiny_config):
    return tiny_config.replace(four_bit=False, adversary_moves=3, adversary_tokens=4, clean=0.25,
                               position="everywhere")


@pytest.fixture
def trainer(config, tmp_path):
    return trainer_of(config, tmp_path)


def trainer_of(config, folder):
    bundle = models.load("toy", four_bit=config.four_bit)
    rows = training.prepare(config, bundle, training.training_pairs(config), progress=False)
    trainer = training.build_trainer(config, bundle, rows, folder)
    away_from_the_reference(trainer)
    return trainer


def batch_of(trainer, n=8):
    return trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset.select(
        range(n)))))


def attacked_pairs(trainer, n=8):
    """(pair, free positions, noise) of the attacked ones among the first n rows."""
    drawn = trainer.adversary.draw(list(trainer.train_dataset.select(range(n))))
    return [(pair, free, trainer.adversary.noise(seed, len(free)))
            for pair, free, seed in drawn if free]


@pytest.mark.parametrize("place", ADVERSARY_PLACES)
def test_the_moves_are_those_of_the_plain_specification(config, tmp_path, place):
    trainer = trainer_of(config.replace(adversary_place=place), tmp_path)
    found, before = adversary.attacked(trainer.model, batch_of(trainer)["attack"],
                                       trainer.adversary)
    wanted, means = [], []
    for (prompt, _, rejected), free, noise in attacked_pairs(trainer):
        embeddings, steps = adversary.plain_attacked(
            trainer.model, prompt, rejected, free, noise.tolist(), trainer.adversary.radius, 3)
        wanted += embeddings
        means.append(steps)
    assert len(means) > 1 and sum(steps[-1] - steps[0] for steps in means) != 0
    torch.testing.assert_close(before, torch.tensor(means)[:, 0], atol=1e-4, rtol=0)
    # a slope near zero may have another sign by rounding, and its coordinate goes the other way
    apart = (found - torch.tensor(wanted)).abs() > 1e-5
    assert apart.float().mean() < 1e-3


KINDS = ("one window", "windows in some layers", "windows, eager, sinks", "windows and a soft cap",
         "chunks", "divided logits", "learned positions", "a head called decoder")


@pytest.mark.parametrize("name", KINDS)
def test_moves_and_log_probs_are_exact_for_attention_of_every_kind(toy, name):
    model = tiny(*EXACT[name], toy).model
    drawer = adversary.Adversary(2, 0.02, 1.0, 3, "around", 0, (70, 71, 72), 32)
    rows = [{"prompt_ids": list(range(20, 34 + 3 * k)), "chosen_ids": [9, 8],
             "rejected_ids": [7, 6, 5][k:], "spans": [3, 12, 4, 9 + k]} for k in range(2)]
    drawn = drawer.draw(rows)
    attack = adversary.collate(drawn, drawer, 0)
    vectors, before = adversary.attacked(model, attack, drawer)
    batch = shared_prefix.collate([pair for pair, _, _ in drawn], 0)
    tokens = shared_prefix.token_logprobs(
        model, batch | {"replaced": (attack["row"], attack["at"], vectors)})
    after = adversary.per_answer(tokens[batch["rejected"] == 1], attack)
    wanted, means = [], []
    for (prompt, _, rejected), free, seed in drawn:
        embeddings, steps = adversary.plain_attacked(
            model, prompt, rejected, free, drawer.noise(seed, len(free)).tolist(), 0.02, 2)
        wanted += embeddings
        means.append((steps[0], steps[-1]))
    torch.testing.assert_close(torch.stack([before, after], 1), torch.tensor(means), atol=1e-4,
                               rtol=0)
    assert ((vectors - torch.tensor(wanted)).abs() > 1e-5).float().mean() < 0.02
    assert (after - before).abs().min() > 1e-6


@pytest.mark.parametrize("merged", [False, True])
def test_reading_the_prompt_once_changes_no_log_prob(trainer, merged):
    batch = batch_of(trainer)
    attack, base = batch["attack"], shared_prefix.base_of(trainer.model.eval())
    vectors, _ = adversary.attacked(trainer.model, attack, trainer.adversary)
    with torch.no_grad(), trainer.still() if merged else contextlib.nullcontext():
        rest = base.get_input_embeddings()(attack["tails"])
        cache, mask = shared_prefix.read(base, attack["heads"], attack["read"])
        mask = torch.cat([mask, attack["real"]], dim=1)
        for _ in range(2):  # the cache serves as often as it is asked
            short = adversary.rejected_logprobs(base, cache, mask, attack, rest, vectors)
    with torch.no_grad():
        whole = shared_prefix.token_logprobs(
            base, batch | {"replaced": (attack["row"], attack["at"], vectors)})
    wanted = whole[(batch["rejected"] == 1) & torch.isin(batch["row"], attack["rows"])]
    torch.testing.assert_close(short, wanted, atol=1e-5, rtol=0)
    plain = shared_prefix.token_logprobs(base, batch)
    assert (plain - whole).abs().max() > 0.1  # the embeddings are read


def test_no_coordinate_goes_beyond_the_radius_and_the_rest_of_the_batch_stays(trainer):
    batch, radius = batch_of(trainer), trainer.adversary.radius
    attack = batch["attack"]
    vectors, _ = adversary.attacked(trainer.model, attack, trainer.adversary)
    origin = trainer.model.get_input_embeddings()(batch["input_ids"][attack["row"], attack["at"]])
    far = (vectors - origin).abs()
    assert far.max() <= radius + 1e-6 and (far > 0.9 * radius).float().mean() > 0.2
    table = trainer.model.get_input_embeddings().weight
    assert radius == pytest.approx(table.square().mean().sqrt().item(), rel=1e-5)
    assert not any(weight.grad is not None for weight in trainer.model.parameters())


@pytest.mark.parametrize(("place", "free"), [
    ("suffix", [8, 9, 10]), ("prefix", [3, 4, 5]), ("behind", [7, 8, 9]), ("around", [5, 8, 9]),
    ("payload", [5, 6])])
def test_free_tokens_stand_where_the_place_says(place, free):
    drawer = adversary.Adversary(1, 1.0, 1.0, 3, place, 0, (70, 71, 72), 2)
    row = {"prompt_ids": list(range(10)), "chosen_ids": [20], "rejected_ids": [21],
           "spans": [3, 8, 5, 7]}
    (prompt, chosen, rejected), positions, _ = drawer.draw([row])[0]
    assert list(positions) == free and (chosen, rejected) == ([20], [21])
    drawn = [] if place == "payload" else free
    assert [token for at, token in enumerate(prompt) if at not in drawn] == list(range(10))
    assert all(prompt[at] in (70, 71, 72) for at in drawn)


def test_what_is_drawn_depends_on_seed_and_batch_and_the_share_holds():
    rows = [{"prompt_ids": [k, *range(9)], "chosen_ids": [20], "rejected_ids": [21],
             "spans": [4, 6, 5, 6] if k % 4 else []} for k in range(400)]
    drawer = adversary.Adversary(1, 1.0, 0.5, 3, "suffix", 0, tuple(range(70, 99)), 2)
    first = drawer.draw(rows)
    assert first == drawer.draw(rows) != drawer.draw(rows[::-1])[::-1]
    assert first != dataclasses.replace(drawer, seed=1).draw(rows)
    assert not any(free for (_, free, _) in first[::4])
    assert 120 < sum(bool(free) for _, free, _ in first) < 180
    assert not torch.equal(drawer.noise(1, 3), drawer.noise(2, 3))
    anywhere = dataclasses.replace(drawer, place="any").draw(rows)
    assert {free for _, free, _ in anywhere if free} == {
        (6, 7, 8), (4, 5, 6), (5, 7, 8), (5,)}  # behind the injection is behind the data here


@pytest.mark.parametrize("position", ["start", "end", "random"])
def test_spans_are_of_the_data_and_of_the_injection_in_them(toy, position):
    from secalign_kit import pairs

    host = Sample(DINOSAUR_HOST.instruction, "One number. Is it prime? Check it twice.", "Yes.")
    pair = pairs.make_pairs([host, DINOSAUR_PAYLOAD], seed=3, n=1, naive=1.0, position=position)[0]
    ids = logprobs.encode_pair(toy, *(m["content"] for m in pair["prompt"]), "a", "b")["prompt_ids"]
    first, last, start, end = adversary.spans(toy, pair)
    assert toy.tokenizer.decode(ids[first:last]) == pair["prompt"][1]["content"]
    injection = pair["prompt"][1]["content"][pair["injection_start"] : pair["injection_end"]]
    assert toy.tokenizer.decode(ids[start:end]).strip() == injection.strip()
    assert adversary.spans(toy, pair | {"injection_start": -1}) == []


def test_drawn_tokens_are_printable_and_ordinary(toy):
    words = adversary.printable(toy.tokenizer)
    texts = toy.tokenizer.batch_decode([[i] for i in words])
    assert len(words) > 500 and all(text.strip() and text.isprintable() for text in texts)
    assert not set(words) & set(toy.tokenizer.added_tokens_decoder)


def test_a_run_logs_what_the_moves_do_and_ends_as_a_killed_one(config, tmp_path, train_killed):
    config = config.replace(n_pairs=32, save_steps=2, accumulation=1)
    pairs, probe = training.training_pairs(config), training.probe_pairs(config, "validation", 8)
    whole = training.train(config.replace(output=str(tmp_path / "whole")), pairs, probe)
    assert all({*training.ATTACKED} <= r.keys() for r in whole.metrics[1:])
    assert whole.metrics[1]["loss"] != pytest.approx(0.6931, abs=1e-3)  # the reference is unmoved

    resumed = train_killed(config, pairs, probe)
    weights = [load_file(run.folder / "adapter" / "adapter_model.safetensors")
               for run in (whole, resumed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("change", [
    {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "four_bit": True},
    {"four_bit": True}])
def test_settings_that_save_memory_change_rounding_only(config, tmp_path, change, monkeypatch):
    monkeypatch.setattr(models, "has_bf16", lambda device: False)
    same = {"four_bit": change.get("four_bit", False)}
    found = []
    for changes in (same, change):
        trainer = trainer_of(config.replace(**changes), tmp_path / str(len(changes)))
        trainer.model.train()
        loss = loss_of(trainer, trainer.train_dataset.select(range(8)))
        loss.backward()
        found.append((loss.detach(), next(p.grad for n, p in trainer.model.named_parameters()
                                          if "lora_B" in n)))
        assert trainer.model.training and found[-1][1].abs().max() > 0
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-3)


def test_a_portrait_says_where_the_tokens_went(config, secured):
    rows = training.prepare(config, secured, training.training_pairs(config, n=8), progress=False)
    drawer = adversary.of(config, secured)
    row = next(row for row in rows if row["spans"])
    found = adversary.portrait(secured, drawer, row)
    assert found["after"] > found["before"] and len(found["tokens"]) == 4
    for told in found["tokens"]:
        assert 0 < told["went"] <= 1 + 1e-5
        assert told["distance"] <= told["went"] + 1e-5  # the token itself is one of them
        if told["nearest"] == told["token"]:
            assert told["distance"] == pytest.approx(told["went"], abs=1e-3)
        table = secured.model.get_input_embeddings().weight.detach().float()
        one, other = (secured.tokenizer.encode(told[name], add_special_tokens=False)
                      for name in ("token", "neighbour"))
        if len(one) == len(other) == 1:  # the text is read as the token that it is of
            lengths = (table - table[one[0]]).norm(dim=1)
            assert one != other and sorted(lengths.tolist())[1] == pytest.approx(
                lengths[other[0]].item(), abs=1e-4)
            unit = table.square().mean().sqrt() * table.shape[1] ** 0.5
            assert told["gap"] == pytest.approx((lengths[other[0]] / unit).item(), rel=0.01)
    with pytest.raises(ValueError, match="no injection"):
        adversary.portrait(secured, drawer, row | {"spans": []})


def test_an_adversary_that_lowers_log_p_is_refused_where_there_is_something_to_raise():
    training.refuse_idle(-9.0, -2.0)
    training.refuse_idle(-0.05, -0.5)
    for before, after in ((-9.0, -9.5), (-9.0, -9.0), (-0.05, -0.05)):
        with pytest.raises(ValueError, match="adversary does nothing"):
            training.refuse_idle(before, after)


def test_an_adversary_that_does_nothing_is_refused(config, monkeypatch):
    monkeypatch.setattr(adversary.Adversary, "move", lambda self, moved, slope: moved)
    with pytest.raises(ValueError, match="adversary does nothing"):
        training.train(config.replace(adversary_moves=1), training.training_pairs(config),
                       training.probe_pairs(config, "validation", 4))


def test_a_model_whose_prompts_cannot_be_read_once_is_refused(config, monkeypatch):
    monkeypatch.setattr(shared_prefix, "sharing",
                        lambda model: shared_prefix.Sharing(rows=True, caches=False))
    bundle = models.load("toy", four_bit=False)
    with pytest.raises(ValueError, match="set adversary_moves=0"):
        training.prepare(config, bundle, training.training_pairs(config), progress=False)


def test_pairs_that_do_not_fit_with_the_drawn_tokens_are_refused(config):
    bundle = models.load("toy", four_bit=False)
    pairs = training.training_pairs(config)
    longest = max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
                  for row in logprobs.encode_pairs(bundle, pairs, 256))
    tight = config.replace(max_length=longest, adversary_tokens=60)
    with pytest.raises(ValueError, match="with the adversary's"):
        training.prepare(tight, bundle, pairs, progress=False)


def test_without_an_adversary_a_batch_is_as_it_was(config, tmp_path):
    trainer = trainer_of(config.replace(adversary_moves=0), tmp_path)
    assert trainer.adversary is None and "spans" not in trainer.train_dataset.column_names
    assert not {"attack", "replaced"} & batch_of(trainer).keys()


def test_a_run_that_starts_from_an_adapter_begins_where_that_one_is(tiny_config, tmp_path):
    shipped = models.ADAPTERS["paper"]
    config = tiny_config.replace(four_bit=False, lora_r=16, lora_alpha=16, start="paper")
    bundle = models.load("toy", four_bit=False)
    rows = training.prepare(config, bundle, training.training_pairs(config), progress=False)
    plain = models.load("toy", four_bit=False, adapter=shipped)
    trainer = training.build_trainer(config, bundle, rows, tmp_path)
    policy = torch.stack(logprobs.score_pairs(bundle, list(rows)))
    torch.testing.assert_close(policy, torch.stack(logprobs.score_pairs(plain, list(rows))))
    with models.insecure(bundle):
        reference = logprobs.score_pairs(bundle, list(rows))[0]
    torch.testing.assert_close(reference, torch.tensor(rows["ref_chosen_logps"]), atol=1e-4,
                               rtol=1e-4)
    assert not torch.allclose(policy[0], reference, atol=0.1)
    loss_of(trainer, rows.select(range(8))).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trainer.model.parameters())


@pytest.mark.parametrize("change", [{"lora_r": 8}, {"lora_alpha": 8},
                                    {"lora_targets": ("q_proj",)}])
def test_a_run_does_not_start_from_an_adapter_of_another_shape(tiny_config, change):
    config = tiny_config.replace(**({"lora_r": 16, "lora_alpha": 16, "start": "paper"} | change))
    with pytest.raises(ValueError, match=f"set {next(iter(change))} as the adapter has it"):
        training.train(config, training.training_pairs(config), training.training_pairs(config))
    assert not training.Path(config.output).exists()


@pytest.mark.parametrize(("settings", "rest"), [
    ({"use_rslora": True}, "use_rslora"), ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
    ({"use_dora": True}, "DoRA's magnitudes"),
])
def test_a_run_does_not_start_from_weights_that_would_mean_something_else(tmp_path, settings, rest):
    folder = tmp_path / "adapter"
    shutil.copytree(models.ADAPTERS["paper"], folder)
    described = json.loads((folder / "adapter_config.json").read_text())
    config = RunConfig(lora_r=16, lora_alpha=16, start=str(folder),
                       lora_targets=tuple(described["target_modules"]))
    assert training.starting_adapter(config) == folder
    (folder / "adapter_config.json").write_text(json.dumps(described | settings))
    with pytest.raises(ValueError, match=f"has {rest}, which the run's adapter has not"):
        training.starting_adapter(config)


@pytest.mark.parametrize(("changes", "said"), [
    ({"adversary_moves": -1}, "give 0 for no adversary"), ({"adversary_place": "top"}, "choose"),
    ({"adversary_moves": 2, "adversary_share": 0}, "attack nothing"),
    ({"adversary_radius": 0}, "adversary_radius is 0"), ({"adversary_share": 2}, "from 0 to 1"),
    ({"adversary_tokens": 0}, "adversary_tokens is 0"),
    ({"adversary_moves": 1, "shared_prefix": False}, "which has no adversary"),
])
def test_bad_settings_of_the_adversary_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        RunConfig().replace(**changes)

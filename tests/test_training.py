"""A run trains, records, resumes, refuses to cut, and computes TRL's loss."""

import dataclasses
import functools
import json

import pytest
import torch
from peft import peft_model
from transformers import TrainerState
from trl import DPOTrainer
from trl_oracle import trainer_of

from secalign_kit import injections, logprobs, models, pairs, training
from secalign_kit.config import RunConfig, recipe
from secalign_kit.samples import Sample


def away_from_the_reference(trainer):
    """LoRA's B moved from zero, in the same way for every trainer over the same model."""
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.manual_seed(len(name))
            parameter.data.normal_(std=0.02)


def loss_of(trainer, rows):
    """The trainer's loss of these rows as one batch."""
    batch = trainer._prepare_inputs(trainer.data_collator(list(rows)))
    return trainer.compute_loss(trainer.model, batch)


def test_a_run_leaves_adapter_log_pairs_and_config(tiny_config):
    pairs = training.training_pairs(tiny_config)
    run = training.train(tiny_config, pairs, training.probe_pairs(tiny_config, "validation", 8))
    files = {p.name for p in run.folder.iterdir()}
    assert {"config.yaml", "pairs", "metrics.jsonl", "versions.json", "adapter"} <= files
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").open()]
    assert [r["step"] for r in records] == [0, 1, 2, 3]
    assert records[1]["loss"] == pytest.approx(0.6931, abs=1e-3)  # log 2: policy is reference
    assert records[0]["chosen_logprob"] < 0 and "chosen_logprob" in records[-1]
    again = models.load("toy", adapter=run.folder / "adapter")
    rows = logprobs.encode_pairs(again, pairs, 256)
    torch.testing.assert_close(logprobs.score_pairs(again, rows)[0],
                               logprobs.score_pairs(run.bundle, rows)[0], atol=1e-4, rtol=1e-4)


def test_a_killed_run_goes_on_and_ends_where_an_unbroken_one_ends(tiny_config, tmp_path,
                                                                     train_killed):
    config = dataclasses.replace(tiny_config, n_pairs=32, save_steps=2)
    probe = training.probe_pairs(config, "validation", 8)
    whole = training.train(dataclasses.replace(config, output=str(tmp_path / "whole")),
                           training.training_pairs(config), probe)

    resumed = train_killed(config, training.training_pairs(config), probe)
    assert resumed.metrics == whole.metrics and len(whole.metrics) == 5
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl", "reference.safetensors",
                 *(f"pairs/{path.name}" for path in (whole.folder / "pairs").iterdir())):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


def test_another_configuration_does_not_mix_into_a_run(tiny_config):
    pairs = training.training_pairs(tiny_config)
    probe = training.probe_pairs(tiny_config, "validation", 4)
    training.train(tiny_config, pairs, probe)
    with pytest.raises(ValueError, match="another configuration"):
        training.train(dataclasses.replace(tiny_config, beta=0.2), pairs, probe)


def test_a_refused_run_leaves_nothing_behind(tiny_config):
    config = dataclasses.replace(tiny_config, max_length=5)
    with pytest.raises(ValueError, match="longer than max_length"):
        training.train(config, training.training_pairs(config), training.training_pairs(config))
    assert not training.Path(config.output).exists()


def test_pairs_that_do_not_fit_are_refused_by_row_not_cut(toy, tiny_config):
    with pytest.raises(ValueError, match="row 0.*none is cut"):
        logprobs.encode_pairs(toy, training.training_pairs(tiny_config), max_length=5)


def test_pairs_beyond_the_models_positions_are_refused_whatever_max_length(toy):
    host = Sample("Repeat the text.", "red owl " * 900, "red")
    dataset = pairs.pairs_dataset([host, Sample("Say it.", "a", "b")], n=4, seed=0)
    with pytest.raises(ValueError, match="pair .* 1,024 positions"):
        logprobs.encode_pairs(toy, dataset, max_length=9999)


@pytest.mark.filterwarnings("ignore:prefixes are not shared")
@pytest.mark.parametrize("objective", ["dpo", "ipo"])
def test_step_one_loss_and_gradients_equal_trls(tiny_config, tmp_path, objective):
    """TRL's own step is the oracle: its forward pass, its reference, its loss, in fp32."""
    found = {}
    for shared in (True, False):
        config = dataclasses.replace(tiny_config, four_bit=False, loss=objective,
                                     shared_prefix=shared)
        bundle = models.load("toy", four_bit=False)
        rows = training.prepare(config, bundle, training.training_pairs(config), progress=False)
        trainer = training.build_trainer(config, bundle, rows, tmp_path / str(shared))
        away_from_the_reference(trainer)
        loss = loss_of(trainer, rows.select(range(8)))
        loss.backward()
        grads = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        found[shared] = loss.item(), grads
    assert type(trainer).compute_loss is DPOTrainer.compute_loss
    start = {"dpo": 0.6931, "ipo": (1 / (2 * tiny_config.beta)) ** 2}[objective]
    assert found[True][0] != pytest.approx(start, rel=1e-3)
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-6, abs=1e-6)
    assert found[True][1].keys() == found[False][1].keys()
    for name, gradient in found[True][1].items():
        torch.testing.assert_close(gradient, found[False][1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:prefixes are not shared")
def test_a_whole_run_ends_where_trls_ends(tiny_config, tmp_path):
    """Same pairs, same batches, fp32: the log-probs after 24 steps are within 1e-4 nats."""
    probe = training.probe_pairs(tiny_config, "validation", 8)
    found = {}
    for shared in (True, False):
        config = dataclasses.replace(tiny_config, four_bit=False, shared_prefix=shared,
                                     n_pairs=64, epochs=3, learning_rate=4e-3,
                                     output=str(tmp_path / str(shared)))
        run = training.train(config, training.training_pairs(config), probe)
        rows = logprobs.encode_pairs(run.bundle, probe, 256)
        found[shared] = torch.stack(logprobs.score_pairs(run.bundle, rows))
        moved = logprobs.score_shift(run.bundle, rows)
    assert (moved[1] - moved[0]).abs().max() > 1  # there is something to agree about
    torch.testing.assert_close(found[True], found[False], atol=1e-4, rtol=0)


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True, "four_bit": False},
                                    {"gradient_checkpointing": True, "four_bit": True},
                                    {"batch_size": 4, "accumulation": 2, "four_bit": False}])
def test_settings_that_save_memory_change_rounding_only(tiny_config, tmp_path, change,
                                                        monkeypatch):
    monkeypatch.setattr(models, "has_bf16", lambda device: True)  # on every CPU alike
    probe = training.probe_pairs(tiny_config, "validation", 8)
    ends = []
    for changes in ({"four_bit": change["four_bit"]}, change):
        config = dataclasses.replace(tiny_config, n_pairs=8, epochs=3, lora_r=8,
                                     output=str(tmp_path / str(len(changes))), **changes)
        run = training.train(config, training.training_pairs(config), probe)
        assert [r["step"] for r in run.metrics] == [0, 1, 2, 3]
        ends.append(run.metrics[-1])
    assert ends[1]["chosen_logprob"] == pytest.approx(ends[0]["chosen_logprob"], abs=1e-4)
    assert ends[1]["margin"] == pytest.approx(ends[0]["margin"], abs=1e-5)
    assert ends[1]["loss"] == pytest.approx(ends[0]["loss"], abs=1e-5)


def test_a_loss_that_is_no_number_stops_the_run(tiny_config, monkeypatch):
    monkeypatch.setitem(training.preference.LOSSES, "dpo",
                        lambda scores, beta: scores.chosen * float("nan"))
    with pytest.raises(ValueError, match="loss is no number at step 1; lower learning_rate"):
        training.train(tiny_config, training.training_pairs(tiny_config),
                       training.training_pairs(tiny_config))


def test_a_last_step_that_breaks_the_weights_leaves_no_adapter(tiny_config, monkeypatch):
    """The step's loss is a number, its gradient is none."""
    own = training.preference.LOSSES["dpo"]
    monkeypatch.setitem(training.preference.LOSSES, "dpo", lambda scores, beta: (
        own(scores, beta) + (0 * scores.chosen).sqrt()))
    with pytest.raises(ValueError, match="chosen_logprob is no number at step 1; lower learning_"):
        run_of(tiny_config, n_pairs=8)
    assert not (training.Path(tiny_config.output) / "adapter").exists()


def test_a_loss_far_above_that_of_the_first_step_is_refused():
    for loss in (0.01, 19.0):
        training.refuse_diverged({"step": 7, "loss": loss}, 0.69)
    with pytest.raises(ValueError, match="the loss grew from 0.69 to 1,234.00 at step 7; lower le"):
        training.refuse_diverged({"step": 7, "loss": 1234.0}, 0.69)


def test_a_run_whose_loss_grows_stops_with_its_step(tiny_config, monkeypatch):
    own, calls = training.preference.LOSSES["dpo"], []

    def grows(scores, beta):
        calls.append(1)
        return own(scores, beta) * 100 ** (len(calls) - 1)

    monkeypatch.setitem(training.preference.LOSSES, "dpo", grows)
    with pytest.raises(ValueError, match=r"the loss grew from .* at step 2; lower learning_rate"):
        run_of(dataclasses.replace(tiny_config, four_bit=False), n_pairs=24)
    assert not (training.Path(tiny_config.output) / "adapter").exists()


def test_a_shift_is_both_scores_of_the_pairs(secured):
    rows = logprobs.encode_pairs(secured, training.probe_pairs(RunConfig(), "heldout", 20),
                                 256)
    before, after = logprobs.score_shift(secured, rows)
    with models.insecure(secured):
        torch.testing.assert_close(before, torch.stack(logprobs.score_pairs(secured, rows)))
    torch.testing.assert_close(after, torch.stack(logprobs.score_pairs(secured, rows)))


def test_lora_stays_in_fp32_on_a_4_bit_model(tiny_config, tmp_path):
    bundle = models.load("toy", four_bit=True)
    rows = training.prepare(tiny_config, bundle, training.training_pairs(tiny_config))
    trainer = training.build_trainer(tiny_config, bundle, rows, tmp_path)
    assert isinstance(trainer, training.PairTrainer)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


def test_length_buckets_give_every_index_once_and_change_with_the_epoch():
    sampler = training.LengthBuckets([i % 17 for i in range(103)], 8, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(103)) and first != second


def test_reference_log_probs_are_kept_by_content(tiny_config, tmp_path, monkeypatch):
    bundle = models.load("toy", four_bit=False)
    cache = tmp_path / "reference.safetensors"
    pairs = training.training_pairs(tiny_config)
    first = training.prepare(tiny_config, bundle, pairs, False, cache)
    monkeypatch.setattr(training, "score_pairs", None)  # a second pass would fail
    again = training.prepare(tiny_config, bundle, pairs, False, cache)
    assert first["ref_chosen_logps"] == again["ref_chosen_logps"]
    monkeypatch.undo()
    with torch.no_grad():
        bundle.model.lm_head.weight.add_(0.01 * torch.ones_like(bundle.model.lm_head.weight[:1]))
        bundle.model.lm_head.weight[7] += 1
    other = training.prepare(tiny_config, bundle, pairs, False, cache)
    assert first["ref_chosen_logps"] != other["ref_chosen_logps"]


def test_supervised_loss_is_the_mean_of_the_chosen_tokens(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, four_bit=False, loss="sft")
    bundle = models.load("toy", four_bit=False)
    rows = training.prepare(config, bundle, training.training_pairs(config), progress=False)
    trainer = training.build_trainer(config, bundle, rows, tmp_path)
    tokens = sum(len(rows[i]["chosen_ids"]) for i in range(8))
    wanted = -sum(rows[i]["ref_chosen_logps"] for i in range(8)) / tokens
    assert loss_of(trainer, rows.select(range(8))).item() == pytest.approx(wanted, abs=1e-4)


def test_kto_scores_prompts_with_the_responses_of_another_pair(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, four_bit=False, loss="kto")
    bundle = models.load("toy", four_bit=False)
    rows = training.prepare(config, bundle, training.training_pairs(config), progress=False)
    trainer = training.build_trainer(config, bundle, rows, tmp_path)
    mixed = trainer.data_collator([rows[i] for i in range(8)])["mismatched"]
    wanted = [*rows[7]["chosen_ids"], *rows[7]["rejected_ids"]]  # the first prompt has the last's
    assert mixed["target"][mixed["row"] == 0].tolist() == wanted
    # an untrained policy has not drifted, gains nothing, and pays 1 - sigmoid(0)
    assert loss_of(trainer, rows.select(range(8))).item() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("loss", ["kto", "simpo"])
def test_a_loss_on_the_shared_prefix_equals_that_of_trls_own_trainer(tiny_config, tmp_path, loss):
    config = dataclasses.replace(tiny_config, four_bit=False, loss=loss, batch_size=8)
    found = {}
    for make in (training.build_trainer, functools.partial(trainer_of, loss)):
        bundle = models.load("toy", four_bit=False)
        rows = training.prepare(config, bundle, training.training_pairs(config), progress=False)
        trainer = make(config, bundle, rows, tmp_path)
        away_from_the_reference(trainer)
        size = 8 * len(trainer.train_dataset) // len(rows)  # KTO counts responses
        found[make] = loss_of(trainer, [trainer.train_dataset[i] for i in range(size)]).item()
    ours, theirs = found.values()
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_trls_own_step_trains_records_and_says_so(tiny_config, loss):
    config = dataclasses.replace(tiny_config, loss=loss, shared_prefix=False)
    with pytest.warns(UserWarning, match=f"TRL's own trainer computes {loss}"):
        run = training.train(config, training.training_pairs(config),
                             training.probe_pairs(config, "validation", 8), progress=False)
    assert [r["step"] for r in run.metrics] == [0, 1, 2, 3]
    assert run.metrics[0]["chosen_logprob"] != run.metrics[-1]["chosen_logprob"]


def test_what_is_logged_is_the_mean_over_the_batches_of_a_step(tiny_config, tmp_path):
    bundle = models.load("toy", four_bit=False)
    pairs = training.training_pairs(tiny_config)
    rows = training.prepare(tiny_config, bundle, pairs, progress=False)
    trainer = training.build_trainer(tiny_config, bundle, rows, tmp_path)
    for start in (0, 8):
        loss_of(trainer, rows.select(range(start, start + 8)))
    logs = {"loss": 1.0}
    trainer.log(logs)
    both = [rows[f"ref_{side}_logps"][:16] for side in ("chosen", "rejected")]
    assert logs["logps/chosen"] == pytest.approx(sum(both[0]) / 16, abs=1e-4)
    assert logs["logps/rejected"] == pytest.approx(sum(both[1]) / 16, abs=1e-4)
    assert logs["rewards/margins"] == pytest.approx(0, abs=1e-5) and not trainer.noted


def test_a_model_in_fp16_trains_with_scaled_gradients(tiny_config, tmp_path):
    cuda = torch.device("cuda")  # fp16 is for GPUs; the arguments can be made anywhere
    for half in (True, False):
        arguments = training.trainer_arguments(tiny_config, tmp_path, cuda, half)
        assert arguments.fp16 is half and not arguments.bf16


def test_a_run_does_not_go_on_with_other_pairs(tiny_config):
    probe = training.probe_pairs(tiny_config, "validation", 4)
    training.train(tiny_config, training.training_pairs(tiny_config), probe, progress=False)
    with pytest.raises(ValueError, match="on other pairs or another base"):
        training.train(tiny_config, training.training_pairs(tiny_config.replace(seed=5)),
                       probe, progress=False)


def test_a_run_goes_on_under_another_name_of_its_folder_and_from_a_whole_checkpoint(tiny_config):
    pairs = training.training_pairs(tiny_config)
    probe = training.probe_pairs(tiny_config, "validation", 4)
    first = training.train(tiny_config, pairs, probe, progress=False)
    half = first.folder / "checkpoints" / "checkpoint-99"
    half.mkdir()  # a kill left it without its state
    log = first.folder / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 9')
    moved = first.folder.rename(first.folder.with_name("moved"))
    again = training.train(dataclasses.replace(tiny_config, output=str(moved)), pairs, probe,
                           progress=False)
    assert again.metrics == first.metrics


class _Full(OSError):
    pass


def _cut(path, *_, **__):
    """A disk fills: half a file is there."""
    training.Path(path).write_text("{")
    raise _Full(28, "No space left on device")


@pytest.mark.parametrize("part", ["weights", "optimizer", "state"])
def test_a_disk_that_fills_leaves_the_last_checkpoint_whole(tiny_config, tmp_path, monkeypatch,
                                                            part):
    config = dataclasses.replace(tiny_config, n_pairs=32, save_steps=2)
    pairs, probe = training.training_pairs(config), training.probe_pairs(config, "validation", 4)
    whole = training.train(config.replace(output=str(tmp_path / "whole")), pairs, probe)

    def fill(record):
        if record["step"] != 3:
            return
        if part == "weights":
            monkeypatch.setattr(peft_model, "safe_save_file", lambda state, path, **_: _cut(path))
        elif part == "optimizer":
            monkeypatch.setattr(torch, "save", lambda state, path, **_: _cut(path))
        else:
            monkeypatch.setattr(TrainerState, "save_to_json", lambda state, path: _cut(path))

    with pytest.raises(_Full):
        training.train(config, pairs, probe, on_record=fill)
    monkeypatch.undo()
    folder = training.Path(config.output)
    assert (folder / "checkpoints" / "checkpoint-4").is_dir()  # begun, and not taken for one
    assert training.last_checkpoint(folder).endswith("checkpoint-2")
    again = training.train(config, pairs, probe)
    assert [r["loss"] for r in again.metrics[1:]] == [r["loss"] for r in whole.metrics[1:]]


@pytest.mark.parametrize("loss", ["orpo", "kto", "simpo"])
def test_a_run_with_another_loss_prefers_chosen(tiny_config, loss):
    config = dataclasses.replace(tiny_config, loss=loss, n_pairs=64, learning_rate=3e-3)
    run = training.train(config, training.training_pairs(config),
                         training.probe_pairs(config, "validation", 16), progress=False)
    first, last = run.metrics[0], run.metrics[-1]
    margin = [r["chosen_logprob"] - r["rejected_logprob"] for r in (first, last)]
    assert margin[1] > margin[0]


def small_gpu(monkeypatch, most: int, checkpointing: int):
    """A device on which no more pairs than that fit at once, without and with checkpointing."""
    monkeypatch.setattr(training, "tries_first", lambda bundle: True)
    own = training.PairTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        limit = checkpointing if self.args.gradient_checkpointing else most
        if len(inputs["input_ids"]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(training.PairTrainer, "compute_loss", compute_loss)


def run_of(config, **changes):
    config = dataclasses.replace(config, **changes)
    return training.train(config, training.training_pairs(config),
                          training.probe_pairs(config, "validation", 4))


@pytest.mark.parametrize(("most", "checkpointing", "used"), [
    (8, 8, {}), (4, 8, {"gradient_checkpointing": True}),
    (1, 2, {"gradient_checkpointing": True, "batch_size": 2, "accumulation": 4})])
def test_a_run_steps_down_to_what_fits_and_keeps_its_steps(tiny_config, tmp_path, monkeypatch,
                                                           most, checkpointing, used):
    # in fp32: where a CPU multiplies in bf16, smaller batches are rounded in another way
    tiny_config = dataclasses.replace(tiny_config, four_bit=False)
    wanted = run_of(tiny_config, **used, output=str(tmp_path / "wanted"))
    small_gpu(monkeypatch, most, checkpointing)
    if used:
        with pytest.warns(UserWarning, match="memory is too small for batch_size 8; going on with"):
            run = run_of(tiny_config)
    else:
        run = run_of(tiny_config)
    # the step that was tried left nothing behind; batches of the reference differ by rounding
    for key in ("loss", "margin", "rejected_logprob"):
        found, expected = ([r[key] for r in metrics if key in r]
                           for metrics in (run.metrics, wanted.metrics))
        assert found == pytest.approx(expected, abs=1e-5) and found
    assert [r["step"] for r in run.metrics] == [0, 1, 2, 3]
    assert RunConfig.from_yaml(run.folder / "config.yaml").batch_size == 8  # as it was asked for
    noted = json.loads((run.folder / "versions.json").read_text())
    assert {name: noted[name] for name in used} == used


def test_a_run_goes_on_with_the_batches_that_it_began_with(tiny_config, monkeypatch):
    small_gpu(monkeypatch, 1, 4)
    config = dataclasses.replace(tiny_config, save_steps=1)
    pairs, probe = (training.training_pairs(config),
                    training.probe_pairs(config, "validation", 4))

    def kill(record):
        if record["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="batch_size 4"):
        training.train(config, pairs, probe, on_record=kill)
    monkeypatch.setattr(training, "fitted", lambda *args: pytest.fail("it was tried already"))
    training.train(config, pairs, probe)
    assert json.loads((training.Path(config.output) / "versions.json").read_text())[
        "batch_size"] == 4


def test_what_fits_nowhere_is_refused(tiny_config, monkeypatch):
    small_gpu(monkeypatch, 0, 0)
    with pytest.raises(ValueError, match="too small for a batch of 1 with checkpointing"):
        run_of(tiny_config)
    assert not (training.Path(tiny_config.output) / "config.yaml").exists()


def test_a_fused_step_that_fails_is_left_out(tiny_config, monkeypatch):
    monkeypatch.setattr(training, "tries_first", lambda bundle: True)
    monkeypatch.setattr(training, "fuses", lambda trainer: True)
    monkeypatch.setattr(training.fused, "steps", lambda *args, **kwargs: 1 / 0)
    with pytest.warns(UserWarning, match="not fused, since here that fails .ZeroDivisionError"):
        assert run_of(tiny_config).metrics[-1]["step"] == 3


def test_a_run_goes_on_without_fused_steps_if_it_began_without(tiny_config, monkeypatch):
    monkeypatch.setattr(training, "tries_first", lambda bundle: True)
    monkeypatch.setattr(training, "fuses", lambda trainer: True)
    monkeypatch.setattr(training.fused, "steps", lambda *args, **kwargs: 1 / 0)
    config = dataclasses.replace(tiny_config, save_steps=1)

    def kill(record):
        if record["step"] == 2:
            raise KeyboardInterrupt

    pairs, probe = training.training_pairs(config), training.probe_pairs(config, "validation", 4)
    with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match="not fused"):
        training.train(config, pairs, probe, on_record=kill)
    noted = training.Path(config.output) / "versions.json"
    assert json.loads(noted.read_text())[training.FUSED] is False
    assert training.train(config, pairs, probe).metrics[-1]["step"] == 3  # or 1 / 0 is met
    assert json.loads(noted.read_text())[training.FUSED] is False


# --- what would be wrong in silence ---------------------------------------------------------------


def test_pairs_that_hold_what_the_tests_say_are_warned_of(tiny_config):
    dataset = pairs.pairs_dataset([Sample("Sum.", "1 2", "3"), Sample("Print 'Hacked!'.", "", "no"),
                                   Sample("Say it.", "a", "b")], n=24, seed=0, frames=0.0)
    planted = sum("Hacked!" in str(pair) for pair in dataset)
    probe = training.probe_pairs(tiny_config, "validation", 4)
    assert 0 < planted < 24
    with pytest.warns(UserWarning, match=f"{planted} of 24 pairs hold 'Hacked', which the tests"):
        training.train(tiny_config, dataset, probe)


@pytest.mark.parametrize("name", ["demo", "secalign", "paper"])
def test_no_recipes_pairs_hold_what_the_tests_say(name):
    found = training.training_pairs(recipe(name), n=2000)
    assert injections.leaks(training._texts(found)) == {}


def test_weights_without_a_gradient_stop_a_run_at_its_first_step(tiny_config, monkeypatch):
    """As bitsandbytes left them on some CPUs: those below a layer that has no backward pass."""
    own = training.build_trainer

    def cut(*args):
        trainer = own(*args)
        layer = training.shared_prefix.decoder_of(
            training.shared_prefix.base_of(trainer.model)).layers[1]
        layer.register_forward_hook(lambda module, inputs, out: (
            out.detach() if torch.is_tensor(out) else (out[0].detach(), *out[1:])))
        return trainer

    monkeypatch.setattr(training, "build_trainer", cut)
    with pytest.raises(ValueError, match="weights of the adapter get no gradient .first: layers.0"):
        run_of(tiny_config)
    assert not (training.Path(tiny_config.output) / "adapter").exists()


def test_a_step_that_trains_nothing_stops_a_run(tiny_config, monkeypatch):
    monkeypatch.setitem(training.preference.LOSSES, "dpo",
                        lambda scores, beta: 0 * (scores.chosen + scores.rejected))
    with pytest.raises(ValueError, match="every gradient of the first step is 0"):
        run_of(tiny_config)


def test_a_reference_that_is_not_the_base_is_said_at_the_first_step(tiny_config, monkeypatch):
    own = training.score_pairs
    monkeypatch.setattr(training, "score_pairs", lambda *args: tuple(
        scores + shift for scores, shift in zip(own(*args), (0.0, 1.0), strict=True)))
    with pytest.warns(UserWarning, match="differ by 1.00 nats a pair before the first step"):
        run_of(tiny_config)


def test_an_undisturbed_run_warns_of_nothing(tiny_config, recwarn):
    run_of(tiny_config)
    assert not [str(w.message) for w in recwarn if "reference" in str(w.message)
                or "pairs hold" in str(w.message)]


def test_a_model_with_an_adapter_is_no_base_to_train(tiny_config):
    secured = models.load("toy", adapter=models.ADAPTERS["secalign"])
    with pytest.raises(ValueError, match="has an adapter already"):
        training.train(tiny_config, training.training_pairs(tiny_config),
                       training.probe_pairs(tiny_config, "validation", 4), secured)
    assert not training.Path(tiny_config.output).exists()


def test_padding_that_is_the_end_token_changes_no_loss(tiny_config, tmp_path):
    """The end of every response is scored, and no padding is, though both have one id."""
    losses = []
    for pad in ("<|pad|>", "<|end|>"):
        bundle = models.load("toy", four_bit=False)
        bundle.tokenizer.pad_token = pad
        rows = training.prepare(tiny_config, bundle, training.training_pairs(tiny_config), False)
        trainer = training.build_trainer(tiny_config, bundle, rows, tmp_path / pad.strip("<|>"))
        away_from_the_reference(trainer)
        losses.append(loss_of(trainer, rows.select(range(8))).item())
        ends = [row["chosen_ids"][-1] for row in rows]
        assert set(ends) == {bundle.tokenizer.convert_tokens_to_ids("<|end|>")}
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and losses[0] != pytest.approx(0.6931)


def test_kto_is_refused_with_weights_in_shards(tiny_config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="loss kto.*ddp.yaml"):
        run_of(tiny_config, loss="kto")

"""The loss beside its specification, and beside TRL's."""

import math

import pytest
import torch

from secalign_kit.preference import (
    LOSSES,
    PairScores,
    dpo_loss,
    plain_dpo_loss,
    plain_response_logprob,
    response_logprobs,
)

torch.set_num_threads(1)


def random_batch(seed, rows=3, length=7, vocabulary=11):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, length, vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary, (rows, length), generator=generator)
    unscored = torch.rand(rows, length, generator=generator) < 0.4
    unscored[:, 0] = True
    return logits, labels.masked_fill(unscored, -100)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_response_logprobs_equal_the_plain_loop(seed, shift):
    logits, labels = random_batch(seed)
    per_token, summed = response_logprobs(logits, labels, shift=shift)
    assert per_token.shape == labels.shape and summed.shape == labels.shape[:1]
    for row in range(len(labels)):
        expected = plain_response_logprob(
            logits[row].tolist(), labels[row].tolist(), shift=shift
        )
        assert per_token[row].tolist() == pytest.approx(expected[0], abs=1e-5)
        assert summed[row].item() == pytest.approx(expected[1], abs=1e-5)


def test_logits_predict_the_next_token():
    logits = torch.full((1, 3, 2), -30.0)
    logits[0, 1, 1] = 30.0  # position 1 is sure that token 1 follows
    assert response_logprobs(logits, torch.tensor([[-100, -100, 1]]))[1].item() == pytest.approx(0)
    assert response_logprobs(logits, torch.tensor([[-100, -100, 0]]))[1].item() < -50


def test_unscored_positions_do_not_leak():
    logits, labels = random_batch(1)
    labels[:, 3] = -100
    before = response_logprobs(logits, labels)[0]
    logits[:, 2] = float("nan")  # predicts position 3 only
    assert torch.equal(response_logprobs(logits, labels)[0], before)


def test_half_precision_logits_are_summed_in_float32():
    logits, labels = random_batch(2)
    assert response_logprobs(logits.bfloat16(), labels)[1].dtype == torch.float32


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5, 2.0])
def test_dpo_loss_equals_the_plain_formula(beta):
    generator = torch.Generator().manual_seed(3)
    values = [-40 * torch.rand(6, generator=generator) for _ in range(4)]
    losses, margins = dpo_loss(*values, beta)
    for i, row in enumerate(zip(*(v.tolist() for v in values), strict=True)):
        loss, margin = plain_dpo_loss(*row, beta)
        assert losses[i].item() == pytest.approx(loss, abs=1e-5)
        assert margins[i].item() == pytest.approx(margin, abs=1e-5)


def test_documented_example():
    loss, margin = plain_dpo_loss(-2.5, -9.0, -3.0, -2.0, 0.1)
    assert margin == pytest.approx(0.75) and loss == pytest.approx(0.386, abs=1e-3)


def test_loss_is_log_two_before_training():
    chosen, rejected = torch.tensor([-3.0, -20.0]), torch.tensor([-1.0, -50.0])
    losses, margins = dpo_loss(chosen, rejected, chosen, rejected, 0.1)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2)
    assert margins.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "policy, sign",
    [((-1.0, -5.0), 1), ((-2.0, -9.0), 1), ((-3.0, -5.0), -1), ((-2.0, -1.0), -1)],
)
def test_margin_is_positive_when_chosen_gained_on_rejected(policy, sign):
    loss, margin = plain_dpo_loss(*policy, -2.0, -5.0, 0.3)
    assert math.copysign(1, margin) == sign
    assert (loss < math.log(2)) == (sign > 0)


def test_far_margins_neither_overflow_nor_vanish():
    assert plain_dpo_loss(-9e5, 0.0, 0.0, 0.0, 1.0)[0] == pytest.approx(9e5)
    assert plain_dpo_loss(0.0, -9e5, 0.0, 0.0, 1.0)[0] == 0.0


def test_a_gradient_step_raises_chosen_and_lowers_rejected():
    chosen = torch.tensor([-3.0], requires_grad=True)
    rejected = torch.tensor([-2.0], requires_grad=True)
    losses, _ = dpo_loss(chosen, rejected, torch.tensor([-3.0]), torch.tensor([-2.0]), 0.1)
    losses.sum().backward()
    # descent moves against the gradient; at a zero margin its size is beta / 2
    assert chosen.grad.item() == pytest.approx(-0.05)
    assert rejected.grad.item() == pytest.approx(0.05)


@pytest.mark.parametrize("beta", [0, -0.1, float("nan"), float("inf")])
def test_bad_beta_is_refused(beta):
    with pytest.raises(ValueError, match="positive"):
        plain_dpo_loss(0.0, 0.0, 0.0, 0.0, beta)
    with pytest.raises(ValueError, match="positive"):
        dpo_loss(*[torch.zeros(1)] * 4, beta)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        response_logprobs(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="row 1 scores its first token"):
        response_logprobs(torch.zeros(2, 3, 4), torch.tensor([[-100, 1, 1], [1, 1, 1]]))
    with pytest.raises(ValueError, match="shapes"):
        dpo_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(1), 0.1)


def tiny_llama(seed):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
            initializer_range=0.5, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        )
    )  # fmt: skip


def tiny_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>"] + [f"w{i}" for i in range(13)]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def trl_trainer(folder, beta):
    """TRL's trainer over two pairs of unequal lengths, policy and reference being different."""
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    rows = {
        "prompt": ["w0 w1 w2", "w3 w4"],
        "chosen": [" w5 w6", " w7"],
        "rejected": [" w8", " w9 w10 w11"],
    }
    config = trl.DPOConfig(
        output_dir=str(folder), beta=beta, loss_type=["sigmoid"], per_device_train_batch_size=2,
        max_steps=1, learning_rate=0.0, logging_steps=1, report_to=[], bf16=False, use_cpu=True,
        gradient_checkpointing=False, disable_dropout=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    return trl.DPOTrainer(
        model=tiny_llama(1), ref_model=tiny_llama(2), args=config,
        train_dataset=datasets.Dataset.from_dict(rows), processing_class=tiny_tokenizer(),
    )  # fmt: skip


def test_loss_equals_the_one_trl_logs(tmp_path):
    trainer = trl_trainer(tmp_path, beta=0.3)
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours = [response_logprobs(tiny_llama(seed)(**inputs).logits, labels)[1] for seed in (1, 2)]
    losses, margins = dpo_loss(*ours[0].chunk(2), *ours[1].chunk(2), beta=0.3)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert abs(margins.mean().item()) > 0.05  # policy and reference do differ
    # TRL rounds what it logs to four significant digits
    assert logged["loss"] == pytest.approx(losses.mean().item(), rel=2e-3)
    assert logged["rewards/margins"] == pytest.approx(margins.mean().item(), rel=2e-3, abs=1e-3)
    assert logged["logps/chosen"] == pytest.approx(ours[0][:2].mean().item(), rel=2e-3)
    assert logged["logps/rejected"] == pytest.approx(ours[0][2:].mean().item(), rel=2e-3)


# --- The relatives of DPO -------------------------------------------------------------------------


def some_scores(seed=0, rows=6, kl=0.7):
    generator = torch.Generator().manual_seed(seed)
    sums = [-20 * torch.rand(rows, generator=generator) - 0.1 for _ in range(4)]
    lengths = [torch.randint(1, 9, (rows,), generator=generator) for _ in range(2)]
    return PairScores(*sums, *lengths, kl)


def plain_loss(name, chosen, rejected, ref_chosen, ref_rejected, c, r, kl, beta):
    """The specifications: one pair, floats, the formulas as the papers print them."""
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    def odds(mean):
        return math.exp(mean) / (1 - math.exp(mean))

    return {
        "dpo": lambda: -math.log(sigmoid(beta * (chosen - ref_chosen - rejected + ref_rejected))),
        "ipo": lambda: ((chosen - ref_chosen) / c - (rejected - ref_rejected) / r
                        - 1 / (2 * beta)) ** 2,
        "orpo": lambda: -chosen / c - beta * math.log(sigmoid(math.log(
            odds(chosen / c) / odds(rejected / r)))),
        "simpo": lambda: -math.log(sigmoid(beta * (chosen / c - rejected / r) - 0.5)),
        "kto": lambda: ((1 - sigmoid(beta * (chosen - ref_chosen - kl)))
                        + (1 - sigmoid(beta * (kl - rejected + ref_rejected)))) / 2,
    }[name]()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_every_loss_equals_its_plain_formula(name, beta):
    s = some_scores()
    columns = [x.tolist() for x in (s.chosen, s.rejected, s.ref_chosen, s.ref_rejected,
                                    s.chosen_tokens, s.rejected_tokens)]
    wanted = [plain_loss(name, *row, s.kl, beta) for row in zip(*columns, strict=True)]
    assert LOSSES[name](s, beta).tolist() == pytest.approx(wanted, rel=1e-4)


def test_orpo_equals_trls():
    orpo = pytest.importorskip("trl.experimental.orpo")
    s = some_scores()
    means = s.chosen / s.chosen_tokens, s.rejected / s.rejected_tokens
    fake = type("Trainer", (), {"beta": 0.3, "accelerator": type("A", (), {"device": "cpu"})})
    theirs = orpo.ORPOTrainer.odds_ratio_loss(fake, *means)[0]  # negative, without the likelihood
    assert LOSSES["orpo"](s, 0.3).tolist() == pytest.approx((-means[0] - theirs).tolist(), rel=1e-4)


def test_simpo_equals_trls():
    cpo = pytest.importorskip("trl.experimental.cpo")
    s = some_scores()
    means = s.chosen / s.chosen_tokens, s.rejected / s.rejected_tokens
    fake = type("Trainer", (), {
        "beta": 2.0, "simpo_gamma": 0.5, "alpha": 0.0, "label_smoothing": 0.0,
        "loss_type": "simpo", "accelerator": type("A", (), {"device": "cpu"})})
    theirs = cpo.CPOTrainer.cpo_loss(fake, *means)[0]
    assert LOSSES["simpo"](s, 2.0).tolist() == pytest.approx(theirs.tolist(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_when_chosen_rises_and_rejected_falls(name):
    values = [x.clone().requires_grad_() for x in (some_scores().chosen, some_scores().rejected)]
    rest = some_scores()
    scores = PairScores(*values, rest.ref_chosen, rest.ref_rejected, rest.chosen_tokens,
                        rest.rejected_tokens, rest.kl)
    LOSSES[name](scores, 0.01).sum().backward()  # IPO's target is far: it wants more of both
    assert (values[0].grad < 0).all() and (values[1].grad > 0).all()


def test_a_certain_token_gives_orpo_no_infinity():
    one = torch.ones(1)
    scores = PairScores(0 * one, -3 * one, 0 * one, 0 * one, one, one)
    assert torch.isfinite(LOSSES["orpo"](scores, 0.1)).all()

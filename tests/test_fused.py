"""Fused layers give what the model's own give, gradients included, and leave nothing behind."""

import contextlib

import bitsandbytes
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from secalign_kit import fused, logprobs, models, shared_prefix, training
from secalign_kit.config import RunConfig
from secalign_kit.models import Bundle

TINY = dict(vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=32, pad_token_id=0,
            bos_token_id=0, eos_token_id=0)
PAIRS = [([11, 12, 13, 14] * (3 + k), [21, 22 + k, 23], [31 + k, 32, 33, 34, 35])
         for k in range(4)]


def four_bit(kind="llama", dropout=0.0, dtype=torch.bfloat16, adapted=True, **changes):
    """A tiny model in NF4 with random weights, and LoRA away from zero; the same at every call."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(TINY | changes)), dtype=dtype)
    for name, linear in list(model.model.named_modules()):
        if isinstance(linear, torch.nn.Linear):
            four = bitsandbytes.nn.Linear4bit(
                linear.in_features, linear.out_features, bias=linear.bias is not None,
                compute_dtype=dtype, quant_type="nf4", device="meta")
            four.weight = bitsandbytes.nn.Params4bit(
                linear.weight.data.bfloat16(), requires_grad=False, quant_type="nf4", module=four,
                compress_statistics=True).to("cpu")
            four.bias = linear.bias
            model.model.set_submodule(name, four)
    models.keep_gradients(model.requires_grad_(False))
    if not adapted:
        return model
    targets = ("q_proj", "v_proj", "down_proj")
    model = get_peft_model(model, models.lora(8, 12, dropout, targets))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
            if "lora_B" in name:
                weight.data.normal_(std=0.1)
    return model


def decoder(model):
    return shared_prefix.decoder_of(shared_prefix.base_of(model))


def steps(model, **options):
    return fused.steps(model, decoder(model), **options)


def results(model) -> dict[str, torch.Tensor]:
    """log p of all response tokens, and the gradients of a weighted sum of them."""
    batch = shared_prefix.collate(PAIRS, 0)
    tokens = shared_prefix.token_logprobs(model, batch)
    model.zero_grad()
    (tokens * torch.linspace(-1, 2, len(tokens))).sum().backward()
    return {"log p": tokens.detach()} | {
        name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


def distances(found: dict, wanted: dict) -> list[float]:
    """The relative error of each tensor."""
    return [((found[name].float() - x).norm() / x.norm()).item() for name, x in wanted.items()]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_log_probs_and_gradients_are_as_near_to_exact_ones(kind):
    exact = results(four_bit(kind, dtype=torch.float32))
    model = four_bit(kind)
    own = results(model)
    assert fused.norms(model) > 0
    with steps(model) as changed:
        assert changed == {"adapters": 9, "rotary": 1, "scales": 21}
        found = results(model)
    assert found["log p"].dtype == torch.float32
    assert {x.dtype for x in found.values()} == {torch.float32}
    now, before = distances(found, exact), distances(own, exact)
    assert 0 < max(distances(found, own))  # both are rounded, at other places
    assert max(now) < 0.03
    assert sum(now) < 1.2 * sum(before)


def test_rotary_and_scales_are_the_same_to_the_bit():
    model = four_bit()
    own = results(model)
    with fused._rotary(decoder(model)) as rotary, fused._scales(model) as scales:
        found = results(model)
    assert rotary == 1 and scales == 21
    assert all(torch.equal(found[name], own[name]) for name in own)


def test_what_is_not_known_stays_as_it_is():
    gemma = four_bit("gemma2", sliding_window=6, query_pre_attn_scalar=32)
    assert fused.norms(gemma) == 0  # it adds 1 to its weights
    with steps(four_bit("cohere", layer_norm_eps=1e-5)) as changed:
        assert changed["rotary"] == 0  # it turns neighbours
    with steps(four_bit(dropout=0.1)) as changed:
        assert changed["adapters"] == 0


def test_everything_is_put_back(toy):
    model = four_bit()
    bundle = Bundle(model, toy.tokenizer, toy.format, "tiny", four_bit=True)
    before, hashed = results(model), models.weights_hash(bundle)
    with contextlib.suppress(KeyError), steps(model):
        assert not torch.equal(results(model)["log p"], before["log p"])
        raise KeyError
    assert all(torch.equal(x, before[name]) for name, x in results(model).items())
    bundle.hashed = None, None
    assert models.weights_hash(bundle) == hashed
    assert not any("forward" in vars(module) for module in model.modules())


def test_copies_follow_the_weights_and_the_switches():
    model = four_bit()
    fused.norms(model)
    with torch.no_grad():
        own = shared_prefix.token_logprobs(model, shared_prefix.collate(PAIRS, 0))
    with steps(model):
        before = results(model)["log p"]
        with torch.no_grad():  # where nothing is trained, the layers' own forward passes
            assert torch.equal(
                shared_prefix.token_logprobs(model, shared_prefix.collate(PAIRS, 0)), own)
        with model.disable_adapter():
            off = shared_prefix.token_logprobs(model, shared_prefix.collate(PAIRS, 0))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.zero_()
        zero = results(model)["log p"]
    assert not torch.equal(zero, before)
    assert torch.equal(zero, off)  # so that the first loss of DPO is log 2


def test_checkpoints_change_nothing():
    model = four_bit()
    fused.norms(model)
    with steps(model, sparing=True) as changed:
        assert changed["scales"] == 12  # of the attention
        once = results(model)
        base = shared_prefix.base_of(model).train()
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
        again = results(model)
    assert all(torch.equal(once[name], again[name]) for name in once)


class Kernels(TorchDispatchMode):
    """Counts what a GPU would launch: all operations but those that only look at a tensor anew."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        if name == "gemm_4bit":  # expands and multiplies, after two more for scales of scales
            self.count += 4 if sum(x is not None for x in args) > 7 else 2
        elif not (func.is_view or name.startswith(("empty", "_unsafe_view", "new_empty"))):
            self.count += 1
        return func(*args, **(kwargs or {}))


def launches(layers: int, new: bool, monkeypatch) -> int:
    model = four_bit(num_hidden_layers=layers)
    if new:  # torch's kernel for norms is there on GPUs only: one launch in each direction
        monkeypatch.setattr(fused.F, "rms_norm", lambda x, *rest: _OneLaunch.apply(x))
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = lambda x, norm=module: fused._normed(norm, x)
    results(model)
    with steps(model) if new else contextlib.nullcontext(), Kernels() as kernels:
        results(model)
    return kernels.count


class _OneLaunch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.neg()

    @staticmethod
    def backward(ctx, slope):
        return slope.neg()


def test_a_layer_takes_half_the_launches(monkeypatch):
    layer = {new: launches(4, new, monkeypatch) - launches(3, new, monkeypatch)
             for new in (False, True)}
    assert layer[True] < 0.52 * layer[False]


@pytest.mark.parametrize("changes", [{}, {"loss": "kto", "gradient_checkpointing": True}])
def test_a_run_ends_where_it_ends_without(toy, tmp_path, monkeypatch, changes):
    monkeypatch.setattr(models, "has_bf16", lambda device: False)  # no autocast around it
    config = RunConfig(n_pairs=24, batch_size=4, epochs=3, lora_r=8, lora_alpha=16,
                       learning_rate=3e-3, lora_targets=("q_proj", "v_proj"), **changes)
    rows = [dict(prompt_ids=[11 + k, 12, 13 + k % 3] * (3 + k % 4), chosen_ids=[21, 22 + k % 5],
                 rejected_ids=[31 + k % 7, 32, 33]) for k in range(24)]
    found = {}
    for new in (False, True):
        monkeypatch.setattr(training, "fuses", lambda trainer, new=new: new)
        bundle = Bundle(four_bit(adapted=False), toy.tokenizer, toy.format, "tiny", four_bit=True)
        both = torch.stack(logprobs.score_pairs(bundle, rows)).tolist()
        data = Dataset.from_list([row | {"ref_chosen_logps": c, "ref_rejected_logps": r}
                                  for row, c, r in zip(rows, *both, strict=True)])
        trainer = training.build_trainer(config, bundle, data, tmp_path / str(new))
        trainer.train()
        assert bool(trainer.changed) == new
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found[new] = losses, torch.stack(logprobs.score_pairs(bundle, rows))
        start = torch.tensor(both)
    if not changes:
        assert found[True][0][0] == pytest.approx(0.6931, abs=1e-3)
    assert found[True][0] == pytest.approx(found[False][0], abs=0.02)
    moved = [(found[new][1] - start).mean(1) for new in (False, True)]  # in nats
    assert moved[0].abs().max() > 3
    torch.testing.assert_close(*moved, rtol=0.05, atol=0.1)

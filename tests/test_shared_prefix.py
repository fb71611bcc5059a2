"""One sequence per pair, and copies of caches, give the log-probs and responses of plain passes."""

import warnings
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from secalign_kit import generation, shared_prefix
from secalign_kit.models import Bundle
from secalign_kit.preference import response_logprobs

IDS = st.lists(st.integers(5, 200), min_size=1, max_size=6)


def plain(model, prompt, response) -> float:
    """The specification: the response alone behind its prompt."""
    ids = torch.tensor([[*prompt, *response]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    return response_logprobs(model(input_ids=ids, use_cache=False).logits, labels)[1].item()


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
    mask = shared_prefix.visible(batch["segments"])[0]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3]]
    assert mask[5].tolist() == [True, True, True, False, False, True]
    assert mask[4].tolist() == [True, True, True, True, True, False]
    assert batch["source"].tolist() == [2, 3, 2] and batch["target"].tolist() == [4, 5, 6]


# --- kinds of models ------------------------------------------------------------------------------

TINY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=128, pad_token_id=0,
            bos_token_id=0, eos_token_id=0)
OLD = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
ROPE = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
EXACT = {
    "one window": ("mistral", TINY | dict(sliding_window=6)),
    "windows in some layers": ("qwen2", TINY | dict(use_sliding_window=True, sliding_window=6,
                                                    max_window_layers=2)),
    "windows, eager, sinks": ("gpt_oss", TINY | dict(sliding_window=6, num_local_experts=2,
                                                     num_experts_per_tok=1)),
    "windows and a soft cap": ("gemma2", TINY | dict(sliding_window=6, query_pre_attn_scalar=8,
                                                     final_logit_softcapping=2.0)),
    "windows and scaled logits": ("cohere2", TINY | dict(sliding_window=6, logit_scale=0.3)),
    "chunks": ("llama4_text", TINY | dict(attention_chunk_size=6, num_local_experts=2,
                                          intermediate_size_mlp=64, moe_layers=[])),
    "divided logits": ("granite", TINY | dict(logits_scaling=4.0)),
    "multiplied logits of the same name": ("hyperclovax", TINY | dict(logits_scaling=0.5)),
    "learned positions": ("gpt2", dict(n_embd=32, n_layer=2, n_head=4, n_positions=128)),
    "a head called decoder": ("modernbert-decoder", TINY | dict(local_attention=12)),
}
APART = {
    "ALiBi by the mask": ("bloom", dict(hidden_size=32, n_layer=2, n_head=4)),
    "ALiBi by places": ("mpt", dict(d_model=32, n_heads=4, n_layers=2, max_seq_len=128)),
    "built-in windows": ("gpt_neo", dict(hidden_size=32, num_layers=2, num_heads=4, window_size=6,
                                         attention_types=[[["global", "local"], 1]])),
    "a state": ("mamba", dict(hidden_size=32, num_hidden_layers=2, state_size=8)),
    "convolutions": ("lfm2", TINY | dict(layer_types=["conv", "full_attention"] * 2)),
    "a state in some layers": ("recurrent_gemma", OLD | dict(
        num_hidden_layers=3, intermediate_size=64, num_key_value_heads=1, lru_width=32,
        attention_window_size=6, block_types=["recurrent", "recurrent", "attention"])),
}


def tiny(kind: str, settings: dict, toy) -> Bundle:
    config = CONFIG_MAPPING[kind](vocab_size=len(toy.tokenizer), **settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)  # so that attention makes a difference
    return Bundle(model, toy.tokenizer, toy.format, kind)


def some_pairs() -> list[shared_prefix.Pair]:
    draw = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(5, 2000, (n,), generator=draw).tolist() for n in lengths)
            for lengths in ((17, 2, 9), (5, 1, 1), (11, 8, 3))]


@torch.inference_mode()
def assert_exact(bundle: Bundle) -> None:
    pairs, model = some_pairs(), bundle.model
    wanted = [[plain(model, p, response) for response in both] for p, *both in pairs]
    found = shared_prefix.pair_logprobs(model, shared_prefix.collate(pairs, 0))
    torch.testing.assert_close(torch.stack(found, 1), torch.tensor(wanted), atol=1e-3, rtol=0)
    scores = shared_prefix.continuation_logprobs(
        model, [p for p, *_ in pairs], [[c, r, c] for _, c, r in pairs], 0)
    assert scores == pytest.approx([x for c, r in wanted for x in (c, r, c)], abs=1e-3)
    prompts = [start + end for start, *_ in pairs for end in ([7], [8, 9, 10, 11])]
    slow = []
    for ids in (list(prompt) for prompt in prompts):
        for _ in range(8):
            ids.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()
                       .item())
        slow.append(ids[-8:])
    assert generation.greedy(bundle, prompts, 8, keys=[0, 0, 1, 1, 2, 2], pays=0) == slow


@pytest.mark.parametrize("name", EXACT)
def test_attention_of_every_kind_shares_and_is_exact(toy, name):
    bundle = tiny(*EXACT[name], toy)
    assert_exact(bundle)
    assert shared_prefix.sharing(bundle.model) == shared_prefix.Sharing(True, True)


@pytest.mark.parametrize("name", APART)
def test_other_kinds_get_separate_sequences_and_one_warning(toy, name):
    bundle = tiny(*APART[name], toy)
    with pytest.warns(UserWarning, match="not shared, since .* exact and slower") as said:
        assert_exact(bundle)
    assert len([w for w in said if "not shared" in str(w.message)]) == 1
    assert not shared_prefix.sharing(bundle.model).rows


def test_a_model_that_sees_what_stands_behind_is_refused(toy):
    bundle = tiny("bert", OLD | dict(intermediate_size=64), toy)
    with pytest.raises(ValueError, match="no causal language model"):
        shared_prefix.sharing(bundle.model)


def test_rotary_angles_that_change_with_the_batch_are_refused(toy):
    bundle = tiny("llama", TINY | dict(rope_parameters=ROPE, max_position_embeddings=24), toy)
    with pytest.raises(ValueError, match="26 tokens, and beyond 24 .*dynamic"):
        shared_prefix.pair_logprobs(bundle.model, shared_prefix.collate(some_pairs(), 0))
    assert shared_prefix.sharing(bundle.model).rows


def test_a_model_is_measured_without_the_rounding_of_the_products_around_it(toy):
    bundle = tiny("llama", TINY, toy)
    with torch.autocast("cpu", torch.bfloat16):
        assert shared_prefix.tolerance(bundle.model, 4) == 0.5
        assert shared_prefix.sharing(bundle.model) == shared_prefix.Sharing(True, True)
    assert shared_prefix.tolerance(bundle.model, 4) == 2e-3


def test_a_window_that_is_longer_than_the_rows_changes_nothing(toy):
    bundle = tiny("mistral", TINY | dict(sliding_window=29), toy)
    assert shared_prefix.narrow(bundle.model, 29) == {}
    assert shared_prefix.narrow(bundle.model, 30) == {"sliding_attention": 29}
    assert_exact(bundle)


# --- the head in pieces ---------------------------------------------------------------------------


class Peak(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (out if isinstance(out, (tuple, list)) else (out,)):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(tensor, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int):
        self.known.discard(key)
        self.now -= size


def large_head(settings: dict | None = None):
    config = CONFIG_MAPPING["gemma2"](vocab_size=20_000, **(TINY | (settings or {})))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)


def scored(model, monkeypatch, logits: int, tokens: int = 96) -> tuple:
    """(log p, gradient of the hidden states) with so many logits at once."""
    monkeypatch.setattr(shared_prefix, "LOGITS", logits)
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, 32, generator=draw).requires_grad_()
    target = torch.randint(20_000, (tokens,), generator=draw)
    found = shared_prefix.score(model, hidden, target)
    (found * torch.linspace(-1, 2, tokens)).sum().backward()
    return found.detach(), hidden.grad


def test_pieces_change_neither_loss_nor_gradient_and_keep_no_logits(monkeypatch):
    model = large_head({"final_logit_softcapping": 5.0})
    whole, pieces = (scored(model, monkeypatch, n) for n in (2**30, 7 * 20_000))
    model.lm_head.weight.requires_grad_()  # then the usual backward pass is taken
    usual = scored(model, monkeypatch, 1)
    for found in (whole, pieces):
        torch.testing.assert_close(found, usual, atol=2e-6, rtol=1e-5)
    assert model.lm_head.weight.grad is not None
    model.lm_head.weight.requires_grad_(False)
    peaks = {}
    for tokens, at_once in ((100, 4), (400, 4), (400, 400)):
        with Peak() as peak:
            scored(model, monkeypatch, at_once * 20_000, tokens)
        peaks[tokens, at_once] = peak.most / (20_000 * 4)  # in tokens' logits, fp32
    assert peaks[400, 4] - peaks[100, 4] < 3  # in place of 300 at least
    assert peaks[400, 4] < 60 and peaks[400, 400] > 1200


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_slope_written_in_place_is_autograds(dtype):
    """As a GPU computes it; in bf16 the logits are rounded, what is made of them is not."""
    model = large_head({"final_logit_softcapping": 5.0}).to(dtype)
    hidden = 3 * torch.randn(24, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    target, found = torch.arange(24), {}

    def of(hidden, target):
        scores = shared_prefix.logits(model, hidden).float()
        return -torch.nn.functional.cross_entropy(scores, target, reduction="none")

    for name, both in (("in place", lambda *x: shared_prefix._sloped(model, *x)),
                       ("autograd", lambda *x: shared_prefix._derived(of, *x))):
        leaf = hidden.clone().requires_grad_()
        values = shared_prefix._Scored.apply(leaf, target, both, 24)
        values.sum().backward()
        found[name] = values.detach(), leaf.grad
    one, other = found["in place"], found["autograd"]
    torch.testing.assert_close(one[0], other[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one[1], other[1],
                               **(dict(atol=1e-3, rtol=2**-7) if dtype == torch.bfloat16 else {}))
    model, most = large_head({"final_logit_softcapping": None}).bfloat16(), []
    for both in (lambda *x: shared_prefix._sloped(model, *x),
                 lambda *x: shared_prefix._derived(of, *x)):
        with Peak() as peak:
            both(hidden.bfloat16().requires_grad_(), target)
        most.append((peak.most - 20_000 * 32 * 2) / (24 * 20_000))  # a view of the head counts too
    assert most[0] < 8.2 and most[1] > 12  # bytes a logit


def test_a_gpus_pieces_grow_with_the_batch():
    for tokens, most in ((300, 64), (1000, 200), (5000, 523)):
        size = shared_prefix.piece(tokens, 128256, cuda=True)
        assert size <= most and 8 * 128256 * size / tokens < 0.2e6  # bytes a token
        assert -(-tokens // size) <= 10  # each reads a head of 1 GB
    assert shared_prefix.piece(5000, 2048, cuda=False) == 4096  # as results were computed


def test_without_gradients_the_pieces_are_the_whole(monkeypatch):
    model = large_head()
    hidden, target = torch.randn(9, 32), torch.arange(9)
    with torch.no_grad():
        whole = shared_prefix.score(model, hidden, target)
        monkeypatch.setattr(shared_prefix, "LOGITS", 1)
        torch.testing.assert_close(shared_prefix.score(model, hidden, target), whole)


def test_the_models_own_forward_pass_is_there_again_after_its_head_was_used(toy):
    bundle, hidden = tiny("llama", TINY, toy), torch.zeros(2, 32)
    ids = torch.tensor([[5, 6]])
    before = bundle.model(input_ids=ids).logits
    shared_prefix.logits(bundle.model, hidden)
    with pytest.raises(RuntimeError):
        shared_prefix.logits(bundle.model, torch.zeros(2, 31))
    assert torch.equal(bundle.model(input_ids=ids).logits, before)


def test_rounding_in_half_precision_does_not_decide_what_is_shared(toy, monkeypatch):
    bundle, seen, found = tiny("llama", TINY, toy), [], shared_prefix._found
    bundle.model.bfloat16()
    monkeypatch.setattr(shared_prefix, "_found", lambda model, *rest: (
        seen.append(model.dtype) or found(model, *rest)))
    with torch.inference_mode():
        assert shared_prefix.sharing(bundle.model) == shared_prefix.Sharing(True, True)
    assert seen == [torch.float32] * 3 and bundle.model.dtype == torch.bfloat16
    shared_prefix.pair_logprobs(bundle.model, shared_prefix.collate(some_pairs(), 0))[0].sum(
        ).backward()  # the weights are those that can have gradients


def test_a_model_told_to_go_apart_gives_the_same(toy):
    bundle, batch, slopes = tiny("llama", TINY, toy), shared_prefix.collate(some_pairs(), 0), []
    weight = bundle.model.model.layers[0].self_attn.k_proj.weight
    for sharing in (shared_prefix.Sharing(True, True), shared_prefix.Sharing(False, False)):
        shared_prefix._KNOWN[bundle.model.model] = sharing
        chosen, rejected = shared_prefix.pair_logprobs(bundle.model, batch)
        slopes.append(torch.autograd.grad((chosen - 2 * rejected).sum(), weight)[0])
    assert slopes[0].abs().max() > 0.1
    torch.testing.assert_close(*slopes, atol=1e-4, rtol=1e-3)
    with pytest.warns(UserWarning, match="for a test; from now on every sequence"):
        shared_prefix.separate(bundle.model, "for a test")
    assert not shared_prefix.sharing(bundle.model).caches
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_exact(bundle)

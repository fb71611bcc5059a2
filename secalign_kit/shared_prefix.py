"""Both responses of a pair in one sequence: the prompt is computed once.

One datum: prompt `[1, 2, 3]`, chosen `[4, 5]`, rejected `[6]` become the row `[1, 2, 3, 4, 5, 6]`
with positions `[0, 1, 2, 3, 4, 3]`; the rejected token sees the prompt but not `4, 5`. So every
log-probability is what two separate sequences give, for P + C + R tokens in place of 2P + C + R.
Exact method: Wang and Hegde, arXiv 2410.20305. The LM head sees response positions only.

Where nothing is trained, the prompt can also be read once into a cache (`prefill`), whose copies
serve any number of continuations: `generation` and `continuation_logprobs` stand on it.

Both are exact for attention that knows places by position ids alone, sliding windows included, and
wrong for layers that carry a state along the row or bend scores by the place in it (ALiBi).
`sharing` measures which of them holds for a model; the others get separate sequences.

Limits: the mask is dense, [B, 1, T, T]; above some thousand tokens a block mask would be better.
The decoder is called directly; for wrappers that hook `forward` (DDP, FSDP) see `through`.
"""

import contextlib
import copy
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from transformers import DynamicCache

from . import models

Pair = tuple[Sequence[int], Sequence[int], Sequence[int]]  # ids of prompt, chosen, rejected

LOGITS = 2**23  # that exist at once, 32 MB in fp32; a smaller vocabulary gets by in one piece
FEWEST, MOST = 2**22, 2**26  # on CUDA, where the share is a sixth of the batch's, between these
WIDTHS = 16  # on CUDA a row's length is a multiple of this, as its attention kernels want a mask's


def collate(pairs: Sequence[Pair], pad: int) -> dict[str, torch.Tensor]:
    """Tensors for B pairs: `input_ids`, `position_ids` and `segments` [B, T] (0 prompt, 1 chosen,
    2 rejected, -1 padding), and for each of the N response tokens `row`, `source` (the position
    that predicts it), `target` (its id) and `rejected` (0 or 1), all [N].
    """
    width = max(len(p) + len(c) + len(r) for p, c, r in pairs)
    ids = torch.full((len(pairs), width), pad)
    positions = torch.zeros((len(pairs), width), dtype=torch.long)
    segments = torch.full((len(pairs), width), -1)
    scored: list[tuple[int, int, int, int]] = []
    for b, (prompt, chosen, rejected) in enumerate(pairs):
        p, c, r = len(prompt), len(chosen), len(rejected)
        total = p + c + r
        ids[b, :total] = torch.tensor([*prompt, *chosen, *rejected])
        positions[b, :total] = torch.tensor([*range(p + c), *range(p, p + r)])
        segments[b, :total] = torch.tensor([0] * p + [1] * c + [2] * r)
        scored += [(b, p - 1 + j, token, 0) for j, token in enumerate(chosen)]
        # the last prompt token predicts the first token of either response
        scored += [(b, p + c - 1 + j if j else p - 1, token, 1) for j, token in enumerate(rejected)]
    row, source, target, is_rejected = torch.tensor(scored).T
    return {
        "input_ids": ids, "position_ids": positions, "segments": segments,
        "row": row, "source": source, "target": target, "rejected": is_rejected,
    }


def visible(segments: torch.Tensor) -> torch.Tensor:
    """Which tokens each one may attend to, [B, T, T]: all before it, but a rejected no chosen."""
    causal = torch.ones(segments.shape[1:] * 2, dtype=torch.bool, device=segments.device).tril()
    return causal & ~((segments[:, :, None] == 2) & (segments[:, None, :] == 1))


def token_logprobs(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """log p of each response token in nats, [N], in the order of `batch["target"]`.

    `batch["replaced"]`, if it is there, holds rows [M], places in them [M] and the embeddings
    [M, H] that stand there in place of the tokens' own; for models that take pairs as rows.
    """
    return through(model, _token_logprobs, batch)


def through(model, function: Callable, batch: dict):
    """`function(module, batch)`; if the module is wrapped, as the wrapper's forward pass.

    DDP and FSDP gather weights and gradients in hooks around the module's forward, so what is
    computed has to be that forward for as long as it takes.
    """
    if not isinstance(model, (DistributedDataParallel, FullyShardedDataParallel, FSDPModule)):
        return function(model, batch)
    module = model if isinstance(model, FSDPModule) else model.module
    with _forward_of(module, lambda batch: function(module, batch)):
        return model(batch)


@contextlib.contextmanager
def _forward_of(module, forward: Callable):
    """Inside, the module's forward pass is another function."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _token_logprobs(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    hidden = (_together if sharing(model).rows else _apart)(base_of(model), batch)
    return score(model, hidden, batch["target"])


def _together(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Hidden states [N, H] that predict the targets; a pair is one row."""
    ids, positions, segments = (batch[k] for k in ("input_ids", "position_ids", "segments"))
    if ids.is_cuda:
        more = 0, -ids.shape[1] % WIDTHS
        ids, positions, segments = F.pad(ids, more), F.pad(positions, more), F.pad(segments, more)
    refuse_beyond(model, positions)
    mask = attention(model, visible(segments), positions, positions)
    given = {"input_ids": ids}
    if "replaced" in batch:
        row, at, vectors = batch["replaced"]
        embeddings = model.get_input_embeddings()(ids)
        given = {"inputs_embeds": embeddings.index_put((row, at), vectors.to(embeddings.dtype))}
    hidden = decoder_of(model)(**given, position_ids=positions, attention_mask=mask,
                                 use_cache=False)[0]
    return hidden[batch["row"], batch["source"]]


def _apart(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same from two rows for each pair. Padding stands behind, where no real token looks."""
    ids, segments = batch["input_ids"], batch["segments"]
    places = torch.arange(ids.shape[1], device=ids.device)
    prompt, chosen = ((segments == k).sum(1, keepdim=True) for k in (0, 1))
    rejected = ids.gather(1, (places + chosen * (places >= prompt)).clamp(max=len(places) - 1))
    refuse_beyond(model, batch["position_ids"])
    longest = int(batch["position_ids"].max()) + 1
    hidden = decoder_of(model)(input_ids=torch.cat([ids, rejected])[:, :longest],
                                 use_cache=False)[0]
    row, source = batch["row"], batch["source"]
    moved = source - (chosen[row, 0] * (source >= prompt[row, 0]) * batch["rejected"])
    return hidden[row + len(ids) * batch["rejected"], moved]


def score(model, hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """log p of each target [N] in nats, [N], from the hidden state [N, H] that predicts it.

    Only a piece's logits exist at once, unless the LM head itself is trained.
    """
    base = base_of(model)
    head = base.get_output_embeddings()

    def of(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -F.cross_entropy(logits(base, hidden).float(), target, reduction="none")

    size = piece(len(hidden), base.config.get_text_config().vocab_size, hidden.is_cuda)
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        return torch.cat([of(*part) for part in
                          zip(hidden.split(size), target.split(size), strict=True)])
    if any(weight.requires_grad for weight in head.parameters()):
        return of(hidden, target)
    if hidden.is_cuda:
        return _Scored.apply(hidden, target, functools.partial(_sloped, base), size)
    return _Scored.apply(hidden, target, functools.partial(_derived, of), size)


def piece(tokens: int, vocabulary: int, cuda: bool) -> int:
    """How many of so many tokens have logits at once.

    A GPU reads the head's weights for every piece, so these are large where there are many tokens:
    a sixth of them, which at 8 bytes a logit is 0.17 MB a token of Llama 3.1's vocabulary.
    """
    if not cuda:
        return max(1, LOGITS // vocabulary)
    return max(1, min(MOST // vocabulary, max(FEWEST // vocabulary, -(-tokens // 6))))


def _derived(of: Callable, hidden: torch.Tensor, target: torch.Tensor) -> tuple:
    """(log p [N], its gradient for the hidden states [N, H]), by autograd."""
    value = of(hidden, target)
    return value.detach(), torch.autograd.grad(value.sum(), hidden)[0]


def _sloped(model, hidden: torch.Tensor, target: torch.Tensor) -> tuple:
    """The same, of which log-softmax and its gradient are one buffer in fp32, written in place."""
    scores = _row_of_logits(model, hidden)
    exact = scores.detach()[0].to(torch.float32, copy=True)
    exact -= exact.amax(-1, keepdim=True)
    chosen = exact.gather(1, target[:, None])
    total = exact.exp_().sum(-1, keepdim=True)
    exact /= -total
    exact.scatter_add_(1, target[:, None], torch.ones_like(chosen))
    slope, = torch.autograd.grad(scores, hidden, exact[None].to(scores.dtype))
    return (chosen - total.log())[:, 0], slope


class _Scored(torch.autograd.Function):
    """log p by pieces, with each one's gradient taken at once, so that no piece's logits are kept.

    A token's log p depends on its own hidden state only, so its gradient [H] is all that the
    backward pass needs.
    """

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, target: torch.Tensor, both: Callable, size: int):
        values, slopes = [], []
        for part, wanted in zip(hidden.detach().split(size), target.split(size), strict=True):
            with torch.enable_grad():
                value, slope = both(part.requires_grad_(), wanted)
            values.append(value)
            slopes.append(slope)
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(values)

    @staticmethod
    def backward(ctx, upstream: torch.Tensor):
        slopes, = ctx.saved_tensors
        return (upstream[:, None] * slopes).to(slopes.dtype), None, None, None


def base_of(model):
    """The model itself, with or without an adapter in it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def decoder_of(model):
    """The model's layers, which make hidden states of ids."""
    found = model.get_decoder(), model.base_model, getattr(model, "model", None)
    # some models call their head "decoder", others have no way to their layers but the name
    return next(part for part in found if part not in (model, model.get_output_embeddings(), None))


class _Given:
    """A decoder's output that is known already."""

    def __init__(self, hidden: torch.Tensor):
        self.last_hidden_state = hidden

    def __getitem__(self, index):
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str):
        return None  # no cache, no routers' logits


def logits(model, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [N, V] of hidden states [N, H], by the model's own forward pass without its layers.

    What it does after the head (Gemma's soft cap, Cohere's and Granite's scaling) is in them.
    """
    return _row_of_logits(model, hidden)[0]


def _row_of_logits(model, hidden: torch.Tensor) -> torch.Tensor:
    """The same as [1, N, V]; to take the row out would copy its gradient."""
    with _forward_of(decoder_of(model), lambda *args, **kwargs: _Given(hidden[None])):
        return model(input_ids=hidden.new_zeros(1, len(hidden), dtype=torch.long)).logits


# --- what each layer may look at ------------------------------------------------------------------

WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Types of layers that look at no more than so many tokens, and what their configs call it."""


def narrow(model, width: int) -> dict[str, int]:
    """The model's types of layers whose window is shorter than a row of `width` tokens."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or WINDOWS
    sizes = {kind: getattr(config, WINDOWS[kind], None) for kind in {*kinds} & WINDOWS.keys()}
    return {kind: size for kind, size in sizes.items() if size and size < width}


def attention(model, visible: torch.Tensor, queries: torch.Tensor,
              keys: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask [B, 1, Q, K] to be added to attention scores, a dict where types of layers differ.

    `visible` [B, Q, K] says what may be seen but for windows, which are of positions: `queries`
    [B, Q], `keys` [B, K].
    """
    short = narrow(model, keys.shape[1])
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or short)
    if not short or not kinds:
        return _additive(model, visible)
    masks = {}
    for kind in kinds:
        seen = visible
        if kind == "sliding_attention" and kind in short:
            seen = visible & (queries[:, :, None] - keys[:, None, :] < short[kind])
        elif kind == "chunked_attention" and kind in short:
            seen = visible & (queries[:, :, None] // short[kind] == keys[:, None, :] // short[kind])
        masks[kind] = _additive(model, seen)
    return masks if len(masks) > 1 else masks.popitem()[1]


def _additive(model, visible: torch.Tensor) -> torch.Tensor:
    """0 where visible. Every attention takes it as it is; a bool one would be read anew by each
    layer, and by eager attention wrongly."""
    mask = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(model.dtype).min)[:, None]


# --- caches ---------------------------------------------------------------------------------------


def left_padded(rows: Sequence[Sequence[int]], pad: int, device) -> tuple:
    """(ids, mask), both [B, T], with the rows at the right."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def prefill(model, heads: Sequence[Sequence[int]], copies: Sequence[int], pad: int) -> tuple:
    """(cache, mask [sum of copies, T]) of B heads, each read once and copied so many times.

    No head may be empty: its row would have nothing to attend to.
    """
    cache, mask = read(model, *left_padded(heads, pad, model.device))
    which = torch.arange(len(heads)).repeat_interleave(torch.tensor(copies)).to(model.device)
    if any(count != 1 for count in copies):
        cache.batch_select_indices(which)
    return cache, mask[which]


def read(model, ids: torch.Tensor, mask: torch.Tensor) -> tuple:
    """(cache, mask) of rows [B, T] with their padding at the left."""
    cache = DynamicCache()
    extend(model, ids, mask, cache)
    return cache, mask


def follow(base, embeddings: torch.Tensor, mask: torch.Tensor, cache) -> torch.Tensor:
    """Hidden states [B, T, H] of `embeddings` [B, T, H] behind a cache, which stays as it is.

    `mask` [B, T before and now] says which tokens count.
    """
    extended = copy.copy(cache)
    extended.layers = [copy.copy(layer) for layer in cache.layers]  # of the same tensors
    return decoder_of(base)(inputs_embeds=embeddings, past_key_values=extended, use_cache=True,
                            **behind(base, mask, embeddings.shape[1]))[0]


def extend(model, ids: torch.Tensor, mask: torch.Tensor, cache) -> torch.Tensor:
    """Logits [B, V] of the token after `ids` [B, T], which are added to the cache.

    `mask` [B, T before and now] says which tokens count.
    """
    out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1,
                **behind(base_of(model), mask, ids.shape[1]))
    return out.logits[:, -1]


def behind(model, mask: torch.Tensor, count: int) -> dict:
    """Positions and mask of the last `count` tokens of rows of which `mask` [B, T] is what counts.

    Where no window is shorter than the row, the model makes its own mask; else it would measure
    windows in places of the row, padding between the tokens included.
    """
    places = positions(mask)
    refuse_beyond(model, places)
    seen: torch.Tensor | dict = mask
    if narrow(model, mask.shape[1]):
        causal = torch.ones(mask.shape[1:] * 2, dtype=torch.bool, device=mask.device).tril()
        seen = attention(model, mask[:, None].bool() & causal[-count:], places[:, -count:], places)
    return {"attention_mask": seen, "position_ids": places[:, -count:]}


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position of each token [B, T] among those that count."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def continuation_logprobs(model, prompts: Sequence[Sequence[int]],
                          responses: Sequence[Sequence[Sequence[int]]], pad: int) -> list[float]:
    """Summed log p in nats of any number of responses to each prompt, in order, all ids.

    The cache of all but a prompt's last id serves all its responses.
    """
    base = base_of(model)
    if not sharing(model).caches:
        return _pairwise_logprobs(model, prompts, responses, pad)
    cache, mask = prefill(model, [prompt[:-1] for prompt in prompts],
                          [len(group) for group in responses], pad)
    # the last id of the prompt predicts the first of a response, whose own last predicts nothing
    inputs = [[prompt[-1], *response[:-1]]
              for prompt, group in zip(prompts, responses, strict=True) for response in group]
    lengths = [len(row) for row in inputs]
    width = max(lengths)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in inputs], device=mask.device)
    real = torch.tensor([[1] * n + [0] * (width - n) for n in lengths], device=mask.device)
    hidden = decoder_of(base)(
        input_ids=ids, past_key_values=cache, use_cache=True,
        **behind(base, torch.cat([mask, real], dim=1), width))[0]
    targets = torch.tensor([token for group in responses for response in group
                            for token in response], device=mask.device)
    tokens = score(model, hidden[real.bool()], targets)
    return [float(part.sum()) for part in tokens.split(lengths)]


def _pairwise_logprobs(model, prompts, responses, pad: int) -> list[float]:
    """The same without a cache, two responses at a time."""
    pairs = [(prompt, group[k], group[k + 1] if k + 1 < len(group) else ())
             for prompt, group in zip(prompts, responses, strict=True)
             for k in range(0, len(group), 2)]
    batch = {key: value.to(model.device) for key, value in collate(pairs, pad).items()}
    scores = torch.stack(pair_logprobs(model, batch), dim=1).tolist()
    return [found for both, (_, _, second) in zip(scores, pairs, strict=True)
            for found in (both if len(second) else both[:1])]


def sum_responses(tokens: torch.Tensor, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token values [N] summed over each chosen and each rejected response, [B] and [B]."""
    sums = tokens.new_zeros(2 * len(batch["input_ids"]))
    sums = sums.index_add(0, 2 * batch["row"] + batch["rejected"], tokens)
    return sums[0::2], sums[1::2]


def pair_logprobs(model, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log p(chosen) and log p(rejected) of each pair in nats, [B] and [B]."""
    return sum_responses(token_logprobs(model, batch), batch)


# --- which models this is exact for ---------------------------------------------------------------


@dataclass(frozen=True)
class Sharing:
    """Which of the two ways to share is exact for a model: rows of pairs, copies of caches."""

    rows: bool
    caches: bool


_KNOWN: WeakKeyDictionary = WeakKeyDictionary()  # of decoders


def sharing(model) -> Sharing:
    """What is exact for this model, measured once on a few tokens; a warning says what is not.

    A small model in half precision is measured in fp32, whatever context this is called in, so that
    its rounding does not decide.

    Raises ValueError for a model whose responses depend on what stands behind them, or that differs
    from itself in any other way, so that nothing the kit computes would be right.
    """
    decoder = decoder_of(base_of(model))
    if decoder not in _KNOWN:
        _KNOWN[decoder] = _measured(base_of(model))
    return _KNOWN[decoder]


def separate(model, why: str) -> None:
    """From now on this model gets separate sequences."""
    base = base_of(model)
    _KNOWN[decoder_of(base)] = Sharing(False, False)
    warnings.warn(f"{type(base).__name__}: {why}; from now on every sequence is computed apart, "
                  "which is exact and slower", stacklevel=3)


def tolerance(model, tokens: int) -> float:
    """How far two ways to compute a sum of log p over so many tokens may differ, in nats.

    In bf16, logits between 16 and 32 are an eighth apart.
    """
    types = {getattr(module, "compute_dtype", None) for module in model.modules()}
    exact = ({model.dtype, *types} <= {torch.float32, torch.float64, None}
             and not torch.is_autocast_enabled(model.device.type))
    return (1e-3 if exact else 0.25) * math.sqrt(tokens)


SURELY = 4  # times the tolerance, beyond which a model is refused and not only kept from sharing


@torch.no_grad()
def _measured(model) -> Sharing:
    some = [model.config.get_text_config().vocab_size // 3 + k for k in range(6)]
    # what repeats is likely, so that rounding in half precision stays small
    pairs = [(some[:4] * 3, some[:3], some[3::-1] + some), (some[:5] * 4, some[:4], some[2:4])]
    responses = [(prompt, response) for prompt, *both in pairs for response in both]
    responses += [(prompt, chosen[:1]) for prompt, chosen, _ in pairs]
    known, state = _unlike_attention(model), model.training
    apart, ways = Sharing(False, False), [Sharing(True, False), Sharing(False, True)]
    errors: dict[Sharing, float] = dict.fromkeys(ways, math.inf)  # in tolerances
    model.eval()
    try:
        with _short_windows(model.config.get_text_config()), exactly(model):
            plain = [plain_logprobs(model, *pair).sum().item() for pair in responses]

            def error(way: Sharing) -> float:
                _KNOWN[decoder_of(model)] = way
                return max(abs(found - wanted) / tolerance(model, len(response))
                           for found, wanted, (_, response) in
                           zip(_found(model, pairs, way), plain, responses, strict=False))

            if (worst := error(apart)) > SURELY:
                raise ValueError(
                    f"{type(model).__name__} gives responses alone and in a batch log-probs that "
                    f"differ by {worst:.0f} times what rounding may do: it is no causal language "
                    "model, or mixes the rows of a batch; choose another model")
            for way in ways if not known else ():
                try:
                    errors[way] = error(way)
                except Exception as refusal:  # whatever a model says that does not take the mask
                    known = known or f"it refuses the mask ({type(refusal).__name__})"
    finally:
        _KNOWN.pop(decoder_of(model), None)
        model.train(state)
    rows, caches = (errors[way] <= 1 for way in ways)
    if not (rows and caches):
        what = "prompts" if rows == caches else "caches" if rows else "rows of pairs"
        warnings.warn(f"{type(model).__name__}: {what} are not shared, since "
                      f"{known or 'the log-probs would differ'}; the sequences are computed apart, "
                      "which is exact and slower", stacklevel=4)
    return Sharing(rows, caches)


def small(model) -> bool:
    """Whether a model's weights may be expanded to fp32 for a while."""
    return model.num_parameters() <= models.EXPANDED


@contextlib.contextmanager
def exactly(model):
    """Inside, rounding is small where that needs little memory: a small model computes in fp32."""
    with torch.autocast(model.device.type, enabled=False), \
            models.in_fp32(model) if small(model) else contextlib.nullcontext():
        yield


def _found(model, pairs: Sequence[Pair], way: Sharing) -> list[float]:
    """Summed log p of both responses of each pair; with caches, of each chosen first token too."""
    if not way.caches:
        batch = {key: value.to(model.device) for key, value in collate(pairs, 0).items()}
        return torch.stack(pair_logprobs(model, batch), dim=1).flatten().tolist()
    prompts = [prompt for prompt, _, _ in pairs]
    return continuation_logprobs(model, prompts, [both for _, *both in pairs], 0) + \
        _next_logprobs(model, prompts, [chosen[0] for _, chosen, _ in pairs])


def plain_logprobs(model, prompt: Sequence[int], response: Sequence[int],
                   every: bool = False) -> torch.Tensor:
    """log p of each token of the response in nats, [R], by one plain forward pass: the
    specification of all above. With `every`, of every token of the vocabulary, [R, V].
    """
    ids = torch.tensor([[*prompt, *response]], device=model.device)
    logits = base_of(model)(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logps = logits.float().log_softmax(-1)
    return logps if every else logps.gather(1, ids[0, len(prompt) :, None])[:, 0]


def _next_logprobs(model, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[float]:
    """log p of a token behind each prompt, read in two parts with padding before and between."""
    heads = [prompt[: -2 - 3 * (k % 2)] for k, prompt in enumerate(prompts)]
    tails = [prompt[len(head) :] for prompt, head in zip(prompts, heads, strict=True)]
    cache, before = prefill(model, heads, [1] * len(heads), 0)
    ids, mask = left_padded(tails, 0, model.device)
    found = extend(model, ids, torch.cat([before, mask], dim=1), cache).float().log_softmax(-1)
    return [row[token].item() for row, token in zip(found, tokens, strict=True)]


def _unlike_attention(model) -> str:
    """Why rows and caches cannot be shared, as far as the model says so; "" if it does not.

    Measuring alone would miss windows built into the weights, a state that fades in a few tokens,
    and in half precision much else.
    """
    config = model.config.get_text_config()
    kinds = {*(getattr(config, "layer_types", None) or ())} - {"full_attention", *WINDOWS}
    if getattr(model, "_is_stateful", False) or kinds:
        return "its layers carry a state along the row"
    if ("local" in (getattr(config, "attention_layers", None) or ())
            or getattr(config, "alibi", False)
            or "position_ids" not in inspect.signature(type(decoder_of(model)).forward).parameters):
        return "its attention goes by places in the row"
    return ""


def refuse_beyond(model, positions: torch.Tensor) -> None:
    """Raises ValueError where rotary angles change with the longest row of a batch.

    They do for rope types "dynamic" and "longrope" beyond the length the model was first made for.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("dynamic", "longrope"):
        return
    limit = rope.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None) or config.max_position_embeddings
    if int(positions.max()) >= limit:
        raise ValueError(
            f"a sequence has {int(positions.max()) + 1} tokens, and beyond {limit} this model's "
            f"rotary angles ({rope['rope_type']}) depend on the longest of a batch; leave out what "
            "is longer, or choose another model")


@contextlib.contextmanager
def _short_windows(config):
    """Inside, windows are of 5 tokens, so that a few tokens show whether they are kept."""
    before = {name: size for name in WINDOWS.values() if (size := getattr(config, name, None))}
    try:
        for name in before:
            setattr(config, name, 5)
        yield
    finally:
        for name, size in before.items():
            setattr(config, name, size)

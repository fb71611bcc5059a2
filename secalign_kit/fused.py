"""Fused: the layers of a 4-bit model in fewer and smaller kernels, for GPUs that wait for launches.

One datum: of Llama's norm, eight kernels that read and write fp32, two are left; of LoRA beside a
4-bit product, a dozen and a copy of the input in fp32, four are left and no copy.

Everything here takes the place of a function only where both gave the same on random numbers, and
leaves what it does not know as it is:

- `norms` computes RMS norms by torch's own kernel, rounded where the model rounds. Once, at load,
  so that training, its reference, scoring and generation all run the same.
- `steps` is for training alone: LoRA multiplies in half precision, by copies of its fp32 weights
  that are made anew for every forward pass; gradients arrive at the fp32 weights. Rotary embedding
  has a backward pass of its own; the scales of 4-bit weights, which are quantized too, are
  expanded once and not at every use (0.06 bytes a parameter, so with checkpointing the small
  matrices' only).

Limits: bf16; LoRA without dropout, DoRA and the like; weights that are not sharded.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator

import bitsandbytes
import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise
from peft.tuners.lora import LoraLayer

HALF = torch.bfloat16
ULP = 2**-7  # of bf16, relative: two roundings to it may be this far apart


# --- norms ----------------------------------------------------------------------------------------


def norms(model) -> int:
    """Gives the model's RMS norms torch's kernel; returns how many it changed.

    Those that are something else (Gemma adds 1 to its weights) are found by comparing and kept.
    """
    alike: dict[tuple, bool] = {}
    found = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")
             and hasattr(m, "variance_epsilon") and getattr(m, "weight", None) is not None
             and m.weight.dtype == HALF and not m.weight.requires_grad]
    count = 0
    for norm in found:
        kind = type(norm), norm.weight.shape, norm.variance_epsilon
        forward = functools.partial(_normed, norm)
        if kind not in alike:
            alike[kind] = _same_norm(norm, forward)
        if alike[kind]:
            norm.forward = forward
            count += 1
    return count


def _normed(norm, hidden: torch.Tensor) -> torch.Tensor:
    size = norm.weight.shape
    return norm.weight * F.rms_norm(hidden, size, None, norm.variance_epsilon)


def _same_norm(norm, forward: Callable) -> bool:
    """Whether the two agree but for the last bit, forwards and backwards."""
    drawn = torch.randn(8, norm.weight.shape[0], generator=torch.Generator().manual_seed(0))
    weight = norm.weight.data
    try:
        # the real weights may all be 1, which would hide where they come in
        norm.weight.data = torch.linspace(0.5, 1.5, len(weight)).to(weight)
        pairs = zip(_with_gradient(norm.forward, drawn.to(weight)),
                    _with_gradient(forward, drawn.to(weight)), strict=True)
        return all(torch.allclose(a.float(), b.float(), rtol=ULP, atol=1e-2 * ULP)
                   for a, b in pairs)
    except Exception:  # a norm of another signature, a kernel that is not there
        return False
    finally:
        norm.weight.data = weight


@torch.enable_grad()
def _with_gradient(function: Callable, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """What the function gives, and the gradients of a sum of it weighed by places."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    out = function(*inputs)
    out = out if isinstance(out, tuple) else (out,)
    ramps = [torch.linspace(-1, 1, x.numel()).to(x).view(x.shape) for x in out]
    return [*out, *torch.autograd.grad(out, inputs, ramps)]


# --- steps of training ----------------------------------------------------------------------------


@contextlib.contextmanager
def steps(model, decoder, sparing: bool = False) -> Iterator[dict[str, int]]:
    """Inside, training steps of this model with its LoRA take fewer kernels.

    `decoder` is the part of the model whose forward pass makes hidden states; `sparing` takes next
    to no memory. Yields how many adapted layers, rotary functions and 4-bit weights are changed;
    all are put back in the end.
    """
    with contextlib.ExitStack() as stack:
        yield {"adapters": stack.enter_context(_adapters(model, decoder)),
               "rotary": stack.enter_context(_rotary(decoder)),
               "scales": stack.enter_context(_scales(model, sparing))}


@contextlib.contextmanager
def _adapters(model, decoder) -> Iterator[int]:
    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and _plain(m)]
    copies: dict = {}

    def renew(*_) -> None:
        if torch.is_grad_enabled():
            copies.update(_halves(layers))

    hook = decoder.register_forward_pre_hook(renew)
    for layer in layers:
        layer.forward = functools.partial(_adapted, layer, layer.forward, copies)
    try:
        yield len(layers)
    finally:
        hook.remove()
        for layer in layers:
            del layer.forward


def _plain(layer) -> bool:
    """Whether the layer is LoRA beside a 4-bit matrix and nothing more."""
    base, names = layer.get_base_layer(), list(layer.active_adapters)
    if not (isinstance(base, bitsandbytes.nn.Linear4bit) and base.compute_dtype == HALF
            and len(names) == 1 and names[0] in layer.lora_A and not layer.merged):
        return False
    name = names[0]
    return (isinstance(layer.lora_dropout[name], torch.nn.Identity)
            and name not in layer.lora_variant and layer.lora_B[name].bias is None
            and layer.lora_A[name].weight.dtype == torch.float32 and "forward" not in vars(layer))


def _weights(layer) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A [r, inputs], B [outputs, r] and the scaling of their product."""
    name = layer.active_adapters[0]
    return layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])


@torch.no_grad()
def _halves(layers) -> dict:
    """Copies in half precision of A, and of B times its scaling, by layer; a few kernels in all."""
    if not layers:
        return {}
    a, b, scalings = zip(*map(_weights, layers), strict=True)
    exact = [*a, *torch._foreach_mul(b, scalings)]
    # fresh ones, so that a graph which is still to go backwards keeps those it was made with
    half = [torch.empty_like(weight, dtype=HALF) for weight in exact]
    torch._foreach_copy_(half, exact)
    return dict(zip(layers, zip(half[: len(a)], half[len(a) :], strict=True), strict=True))


def _adapted(layer, own: Callable, copies: dict, x: torch.Tensor, *args, **kwargs):
    """The forward pass of an adapted layer; its own where nothing is trained or x is not half."""
    if (args or kwargs or layer.disable_adapters or layer.merged or x.dtype != HALF
            or not torch.is_grad_enabled() or layer not in copies):
        return own(x, *args, **kwargs)
    return _Adapted.apply(x, *_weights(layer), *copies[layer], layer.get_base_layer())


class _Adapted(torch.autograd.Function):
    """x [.., inputs] times a 4-bit matrix, plus LoRA, [.., outputs].

    A and B are there for their gradients, `a` and `b` are their copies.
    """

    @staticmethod
    def forward(ctx, x, A, B, scaling: float, a, b, base):
        rows = x.flatten(0, -2)
        low = rows @ a.T
        out = base(rows).addmm_(low, b.T)
        ctx.save_for_backward(x, low, a, b)
        ctx.base, ctx.scaling = base, scaling
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, slope: torch.Tensor):
        x, low, a, b = ctx.saved_tensors
        rows, slope = x.flatten(0, -2), slope.flatten(0, -2)
        deep = slope @ b
        back = of_a = of_b = None  # what is not asked for: an adversary moves its inputs only
        if ctx.needs_input_grad[0]:
            weight = ctx.base.weight
            back = (slope @ dequantize_4bit(weight.view(-1, 1), weight.quant_state).to(HALF)
                    ).addmm_(deep, a).view(x.shape)
        if ctx.needs_input_grad[1]:
            of_a = (deep.T @ rows).float()
        if ctx.needs_input_grad[2]:
            of_b = (slope.T @ low).float() * ctx.scaling
        return back, of_a, of_b, None, None, None, None


# --- rotary embedding -----------------------------------------------------------------------------

ROTARY = "apply_rotary_pos_emb"  # in every file of transformers that has such a function


@contextlib.contextmanager
def _rotary(decoder) -> Iterator[int]:
    """Exchanges the function in the file of the model's layers, where ours gives the same bits."""
    files = {type(module).__module__ for module in decoder.modules()}
    homes = [home for file in sorted(files)
             if callable(getattr(home := sys.modules[file], ROTARY, None))]
    changed = {}
    device = next(decoder.parameters()).device
    for home in homes:
        own = getattr(home, ROTARY)
        ours = functools.partial(_rotated, own)
        if _same_bits(own, ours, device):
            changed[home] = own
            setattr(home, ROTARY, ours)
    try:
        yield len(changed)
    finally:
        for home, own in changed.items():
            setattr(home, ROTARY, own)


def _same_bits(own: Callable, ours: Callable, device) -> bool:
    generator = torch.Generator().manual_seed(0)
    query, key, cos, sin = (torch.randn(shape, generator=generator).to(device, HALF) for shape in (
        (2, 4, 5, 16), (2, 2, 5, 16), (2, 5, 16), (2, 5, 16)))
    try:
        pairs = zip(*(_with_gradient(lambda q, k, f=f: f(q, k, cos, sin), query, key)
                      for f in (own, ours)), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)
    except Exception:  # a function of another signature
        return False


def _rotated(own: Callable, query, key, cos, sin, *args, **kwargs):
    """Query [B, heads, T, D] and key [B, fewer, T, D], turned; cos and sin are [B, T, D]."""
    if (args or kwargs or not torch.is_grad_enabled() or cos.dim() != 3
            or cos.shape[-1] != query.shape[-1] or {x.dtype for x in (query, key, cos)} != {HALF}):
        return own(query, key, cos, sin, *args, **kwargs)
    both = _Rotated.apply(torch.cat([query, key], dim=1), cos[:, None], sin[:, None])
    return both.split([query.shape[1], key.shape[1]], dim=1)


class _Rotated(torch.autograd.Function):
    """x cos + h(x) sin, where h([x1, x2]) = [-x2, x1], rounded as the sum of two products is."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        return (x * cos).addcmul_(x.roll(half, -1).mul_(sin), _signs(half, x.device))

    @staticmethod
    def backward(ctx, slope):
        cos, sin = ctx.saved_tensors
        half = slope.shape[-1] // 2
        turned = (slope * sin).roll(half, -1)
        return (slope * cos).addcmul_(turned, _signs(half, slope.device), value=-1), None, None


@functools.lru_cache(maxsize=8)
def _signs(half: int, device: torch.device) -> torch.Tensor:
    return torch.tensor([-1.0] * half + [1.0] * half, dtype=HALF, device=device)


# --- 4-bit weights --------------------------------------------------------------------------------


@contextlib.contextmanager
def _scales(model, sparing: bool = False) -> Iterator[int]:
    """Inside, the scales of double quantization lie expanded; the values are the same.

    `sparing` leaves out what is larger than the mean: a launch costs the same for all, and of Llama
    3.1 8B's attention the scales are 0.07 GiB, of its MLP 0.3.
    """
    states = [module.weight.quant_state for module in model.modules()
              if isinstance(module, bitsandbytes.nn.Linear4bit)]
    states = [state for state in states if state is not None and state.nested]
    mean = sum(state.absmax.numel() for state in states) / max(1, len(states))
    states = [state for state in states if not sparing or state.absmax.numel() <= mean]
    before = [state.absmax for state in states]
    try:
        for state in states:
            state.absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset
            state.nested = False
        yield len(states)
    finally:
        for state, absmax in zip(states, before, strict=True):
            state.absmax, state.nested = absmax, True

"""Roles: small defenses that are learned beside a LoRA adapter.

One datum: with `RunConfig(beside="role_vectors")` the embedded model learns 5 x 256 numbers more, a
vector for each layer, which is added to the hidden states of the tokens of the data.

    role_vectors      one vector a layer, added to what the layer reads of data tokens
                      (the idea of AIR, arXiv 2505.18907)
    role_embedding    two vectors, one added to the input embeddings of data, one to all others
                      (instructional segment embedding, arXiv 2410.09102)
    role_rotation     the input embeddings of data rotated by 90 degrees; nothing to learn but the
                      adapter (ASIDE, arXiv 2503.10566)
    defensive_tokens  five embeddings before the prompt, and the weights frozen
                      (DefensiveTokens, arXiv 2507.07974)

One of them is a module inside the decoder and a `modules_to_save` of peft's: its numbers stand in
the adapter's own file and its name in `adapter_config.json`, checkpoints hold it, and it is on
exactly when the adapter is. Off, the decoder's own forward pass runs, so the reference is the base
model bit by bit.

Nobody has to say which tokens are data. Their ids say it, since no data hold a reserved one
(`prompts.data_marks`); where a prompt is read in parts, what was read is one more layer of the
cache. Where embeddings are given in place of ids, as attackers do, a mark is known by its own
embedding, which no moved one equals.

Limits: models whose layers are a list and hand on what they are given; caches without a
configuration (`DynamicCache()`), which are the kit's; for `defensive_tokens`, no sliding windows.
A model with one of these is no plain model any more: only the kit can run it, and peft alone would
leave the part out without a word.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from . import prompts
from .config import BESIDE
from .prompts import PromptFormat

NAMES = BESIDE[1:]
TOKENS = 5  # as in arXiv 2507.07974
FEW = 16  # numbers of an embedding that tell it from others


class Part(nn.Module):
    """The numbers of one of `NAMES`, in fp32; `weight` has the shape that `shape_of` says."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


def shape_of(model, name: str) -> tuple[int, ...]:
    """Of the part's numbers in this base model; for role_rotation the one angle, in right ones."""
    config = model.config.get_text_config()
    return {"role_vectors": (config.num_hidden_layers, config.hidden_size),
            "role_embedding": (2, config.hidden_size), "role_rotation": (1,),
            "defensive_tokens": (TOKENS, config.hidden_size)}[name]


def named(config: LoraConfig) -> str:
    """The part that an adapter has beside it, an entry of `config.BESIDE`."""
    return next((name for name in config.modules_to_save or () if name in NAMES), "none")


def trained(name: str, parameter: str) -> bool:
    """Whether a run with this part trains the parameter of this name."""
    return name in parameter if name == "defensive_tokens" else "role_rotation" not in parameter


def taken(model) -> int:
    """Positions that the model's part takes from every prompt."""
    found = _of(model)
    return TOKENS if found and found.name == "defensive_tokens" else 0


def refuse(model, tokenizer, fmt: PromptFormat, name: str) -> None:
    """Raises ValueError for a base model or format that cannot have this part."""
    decoder, config = model.get_decoder(), model.config.get_text_config()
    if decoder is model or len(getattr(decoder, "layers", ())) != config.num_hidden_layers:
        raise ValueError(f"{type(model).__name__} has no list of layers that {name} could reach; "
                         "choose another model, or beside=none")
    if name != "defensive_tokens":
        prompts.data_marks(tokenizer, fmt)
        return
    kinds = {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}
    rope = getattr(config, "rope_parameters", None) or {}
    if kinds or rope.get("rope_type") in ("dynamic", "longrope") or (
            getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None)):
        raise ValueError(f"the layers of {type(model).__name__} do not see all tokens before them "
                         f"alike, which {name} need; choose another model, or beside=none")


def refuse_other(folder, config: LoraConfig, shapes: dict[str, tuple[int, ...]], model) -> None:
    """Raises ValueError if the part beside an adapter is missing or one of another base model.

    `shapes` are those of the tensors in its file.
    """
    if (name := named(config)) == "none":
        return
    found = [list(shape) for key, shape in shapes.items() if key.endswith(f".{name}.weight")]
    if found != [wanted := list(shape_of(model, name))]:
        raise ValueError(f"adapter {str(folder)!r} is one of another model: its {name} have the "
                         f"shape {found[0] if found else 'of nothing'}, and on this model they "
                         f"would have {wanted}; load the model that it was trained on")


def put(model, tokenizer, fmt: PromptFormat, name: str, seed: int = 0) -> None:
    """Gives a base model a new part in place of any other, with "none" no new one.

    It does nothing until an adapter with it in `modules_to_save` is put on the model. Raises
    ValueError as `refuse` does.
    """
    if name != "none":
        refuse(model, tokenizer, fmt, name)
    take_off(model)
    if name == "none":
        return
    decoder = model.get_decoder()
    embed = model.get_input_embeddings()
    weight = torch.zeros(shape_of(model, name))
    if name == "role_rotation":
        weight += 1
    if name == "defensive_tokens":  # begin as any tokens
        drawn = torch.randint(embed.num_embeddings, (TOKENS,),
                              generator=torch.Generator().manual_seed(seed))
        weight = embed(drawn.to(embed.weight.device)).detach().float()
    setattr(decoder, name, Part(weight.to(embed.weight.device)))
    marks = ((), frozenset()) if name == "defensive_tokens" else prompts.data_marks(tokenizer, fmt)
    decoder.forward = Beside(decoder, name, *marks)


def take_off(model) -> None:
    """The base model as it was before `put`."""
    if found := _of(model):
        found.remove()


def _of(model) -> "Beside | None":
    forwards = (vars(module).get("forward") for module in model.modules())
    return next((forward for forward in forwards if isinstance(forward, Beside)), None)


class Beside:
    """A decoder's forward pass with a part of this name; `own` is its own."""

    def __init__(self, decoder, name: str, opening: Sequence[int], reserved: Sequence[int]):
        self.decoder, self.name, self.own = decoder, name, decoder.forward
        marks = list(dict.fromkeys([*sorted(reserved), *opening]))
        self.marks, self.reserved = torch.tensor(marks), len(reserved)
        self.opening = [marks.index(token) + 1 for token in opening]
        self.hooks = [layer.register_forward_pre_hook(functools.partial(self._add, number),
                                                      with_kwargs=True)
                      for number, layer in enumerate(decoder.layers) if name == "role_vectors"]
        self.reached = 0  # layers of the present pass

    def remove(self) -> None:
        """The decoder as it was before."""
        for hook in self.hooks:
            hook.remove()
        del self.decoder.forward
        delattr(self.decoder, self.name)

    @property
    def weight(self) -> torch.Tensor | None:
        """The numbers that count now, None while no adapter is on."""
        part = getattr(self.decoder, self.name)
        if not isinstance(part, ModulesToSaveWrapper) or part.disable_adapters:
            return None
        return part.modules_to_save[part.active_adapters[0]].weight

    def __call__(self, input_ids=None, inputs_embeds=None, **given):
        if (weight := self.weight) is None:
            return self.own(input_ids=input_ids, inputs_embeds=inputs_embeds, **given)
        # a decoder is given its cache under the first name since transformers 5.24
        kept = "cache" if "cache" in given else "past_key_values"
        vectors = inputs_embeds
        if vectors is None:
            vectors = self.decoder.get_input_embeddings()(input_ids)
        if self.name == "defensive_tokens":
            return self._behind(weight.to(vectors.dtype), vectors, kept, **given)
        data = self._data(input_ids, vectors, given.get("attention_mask"), given.get(kept))
        if self.name == "role_embedding":
            vectors = vectors + weight.to(vectors.dtype)[data.long()]
        elif self.name == "role_rotation":
            vectors = torch.where(data[..., None], rotated(vectors, weight.detach()), vectors)
        else:
            given["data_tokens"], self.reached = data, 0
        out = self.own(inputs_embeds=vectors, **given)
        if self.hooks and self.reached != len(self.hooks):
            raise ValueError(f"{type(self.decoder).__name__} does not tell its layers which tokens "
                             "are data; choose another model, or beside=none")
        return out

    def _add(self, number: int, layer, args: tuple, kwargs: dict):
        """Before a layer: its role vector, where the tokens are data."""
        data = kwargs.pop("data_tokens", None)
        if data is None:
            return args, kwargs
        self.reached += 1
        hidden, *rest = args
        added = data[..., None] * self.weight[number].to(hidden.dtype)
        return (hidden + added, *rest), kwargs

    # --- which tokens are data --------------------------------------------------------------------

    @torch.no_grad()
    def _data(self, ids, vectors: torch.Tensor, attention_mask, cache) -> torch.Tensor:
        """Which of the tokens [B, T] are data; those before them are taken from the cache."""
        codes, real = self._codes(ids, vectors), no_padding(attention_mask, vectors)
        if cache is not None:
            place = len(self.decoder.layers)
            lost = cache.layer_class_to_replicate is None or (
                cache.get_seq_length() > 0 and len(cache.layers) <= place)
            if lost:
                raise ValueError(f"this cache does not keep what {self.name} need to know; give "
                                 "an empty DynamicCache() first, or use secalign_kit.generation")
            codes, real = (kept[:, 0, :, 0] for kept in cache.update(
                codes[:, None, :, None], real.long()[:, None, :, None], place))
        found = data_tokens(codes, real.bool(), self.opening, self.reserved)
        return found[:, -vectors.shape[1] :]

    def _codes(self, ids, vectors: torch.Tensor) -> torch.Tensor:
        """The number of the mark that each token is, from 1, [B, T]; 0 for all others."""
        self.marks = marks = self.marks.to(vectors.device)  # copied once
        if ids is not None:
            same = ids[..., None] == marks
        else:
            known = self.decoder.get_input_embeddings()(marks)[:, :FEW]
            same = (vectors[..., None, :FEW] == known).all(-1)
        return same.any(-1) * (same.int().argmax(-1) + 1)

    # --- tokens before the prompt -----------------------------------------------------------------

    def _behind(self, weight: torch.Tensor, vectors: torch.Tensor, kept: str, attention_mask=None,
                position_ids=None, **given):
        """The forward pass behind the tokens [n, H], whose hidden states are left out.

        `kept` is the cache's name among what is given.
        """
        n, rows = len(weight), len(vectors)
        first = (cache := given.get(kept)) is None or cache.get_seq_length() == 0
        if position_ids is not None:
            position_ids = position_ids + n
        if first:
            vectors = torch.cat([weight.expand(rows, -1, -1), vectors], 1)
            if position_ids is not None:
                own = torch.arange(n, device=vectors.device).expand(len(position_ids), -1)
                position_ids = torch.cat([own, position_ids], 1)
        if attention_mask is not None:
            attention_mask = shown(attention_mask, n, first)
        out = self.own(inputs_embeds=vectors, attention_mask=attention_mask,
                       position_ids=position_ids, **given)
        start = n * first
        out.last_hidden_state = out.last_hidden_state[:, start:]
        if out.attentions:
            out.attentions = tuple(layer[:, :, start:, n:] for layer in out.attentions)
        return out


def rotated(vectors: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """The vectors [..., H], each pair of neighbouring numbers rotated by so many right angles."""
    x, y = vectors.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = ((angle * math.pi / 2).cos().to(x.dtype), (angle * math.pi / 2).sin().to(x.dtype))
    return torch.stack([x * cos - y * sin, x * sin + y * cos], -1).flatten(-2)


def shown(mask: torch.Tensor, n: int, first: bool) -> torch.Tensor:
    """The mask, [B, K] or added to scores [B, 1, Q, K], with n tokens before that all may see."""
    if mask.dim() == 2:
        return F.pad(mask, (n, 0), value=1)
    mask = F.pad(mask, (n, 0))
    if first:  # the tokens themselves, each of which sees those before it
        lowest = torch.finfo(mask.dtype).min
        own = mask.new_full((n, mask.shape[-1]), lowest).triu(1)
        mask = torch.cat([own.expand(len(mask), 1, -1, -1), mask], 2)
    return mask


def no_padding(mask, vectors: torch.Tensor) -> torch.Tensor:
    """Which of the tokens [B, T] count: those that may look at themselves."""
    rows, width = vectors.shape[:2]
    mask = next(iter(mask.values())) if isinstance(mask, dict) else mask
    if mask is None:
        return torch.ones(rows, width, dtype=torch.bool, device=vectors.device)
    if mask.dim() == 2:
        return mask[:, -width:].bool()
    itself = mask[:, 0].diagonal(mask.shape[-1] - width, 1, 2)
    return (itself if itself.dtype == torch.bool else itself == 0).expand(rows, -1)


def data_tokens(codes: torch.Tensor, real: torch.Tensor, opening: Sequence[int],
                reserved: int) -> torch.Tensor:
    """Which tokens [B, K] are data: all from an `opening` to the next reserved one.

    `codes` [B, K] number the tokens, those from 1 to `reserved` are reserved; only `real` ones
    count, wherever the padding between them is.
    """
    width = codes.shape[1]
    place = (real.cumsum(1) - 1).clamp(min=0)
    packed = codes.new_zeros(len(codes), width + 1)
    packed = packed.scatter(1, torch.where(real, place, width), codes)[:, :width]
    opens = torch.ones_like(packed, dtype=torch.bool)
    for back, code in enumerate(reversed(opening)):
        opens &= F.pad(packed, (back, 0))[:, :width] == code
    count = torch.arange(1, width + 1, device=codes.device)
    opened = F.pad((opens * count).cummax(1).values, (1, 0))[:, :width]  # before each token
    closed = (((packed > 0) & (packed <= reserved)) * count).cummax(1).values
    return ((opened > 0) & (opened >= closed)).gather(1, place) & real

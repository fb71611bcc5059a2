"""Parity: are the kit's short cuts right for this model and these pairs? Asked before every run.

One datum: `Parity(kit=(-4.1, -31.2), plain=(-4.1, -31.2), tokens=(3, 12), gap=0.0)`: summed log p
in nats as the kit computes them and by one plain forward pass for each response, and how far the
kit's greedy response is from what a plain pass would say.

`shared_prefix.sharing` has measured the model on a few tokens; this looks at the user's own pairs,
whose length it could not know. The embedded model is measured by the tests and not here.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch

from . import generation, shared_prefix
from .logprobs import as_pair
from .models import Bundle

NEW_TOKENS = 12  # of the greedy response that is looked at


@dataclass(frozen=True)
class Parity:
    """The kit against plain forward passes; all but `tokens` in nats."""

    kit: tuple[float, ...]
    plain: tuple[float, ...]
    tokens: tuple[int, ...]
    gap: float
    allowed: float  # for one token; sums may differ by its root of n

    @property
    def difference(self) -> float:
        return max(abs(a - b) for a, b in zip(self.kit, self.plain, strict=True))

    def holds(self, slack: float = 1.0) -> bool:
        """Whether all differences are within `slack` times what rounding may do."""
        apart = zip(self.kit, self.plain, self.tokens, strict=True)
        return self.gap <= 2 * slack * self.allowed and all(  # of two tokens' log p
            abs(a - b) <= slack * self.allowed * n**0.5 for a, b, n in apart)

    def __str__(self) -> str:
        worst = max(range(len(self.kit)), key=lambda k: abs(self.kit[k] - self.plain[k]))
        return (f"{self.kit[worst]:.3f} nats and {self.plain[worst]:.3f} by a plain forward pass, "
                f"greedy tokens up to {self.gap:.3f} nats below the likeliest")


@torch.no_grad()
def parity(bundle: Bundle, rows: Sequence[dict]) -> Parity:
    """The shortest and the longest of the rows of `logprobs.encode_pair`, both responses of each.

    Greedy tokens are judged by one plain pass over the response: 0 where each is the likeliest, so
    that a tie turned by rounding in half precision is no difference.
    """
    model, pad = bundle.model, bundle.tokenizer.pad_token_id
    state = model.training
    model.eval()
    order = sorted(rows, key=_length)
    ends = [order[0], order[-1]]
    pairs = [as_pair(row) for row in ends]
    batch = shared_prefix.collate(pairs, pad)
    batch = {key: value.to(bundle.device) for key, value in batch.items()}
    kit = torch.stack(shared_prefix.pair_logprobs(model, batch), dim=1).flatten().tolist()
    responses = [(prompt, response) for prompt, *both in pairs for response in both]
    plain = [shared_prefix.plain_logprobs(model, *pair).sum().item() for pair in responses]
    longest = pairs[1][0]  # and half of it, so that a start is shared and much padding lies between
    prompts = [pairs[0][0], longest, [*longest[: len(longest) // 2], longest[-1]]]
    greedy = generation.greedy(bundle, prompts, NEW_TOKENS, keys=[0, 1, 1], pays=0)
    gaps = [_gap(model, prompt, said) for prompt, said in zip(prompts, greedy, strict=True) if said]
    model.train(state)
    return Parity(tuple(kit), tuple(plain), tuple(len(r) for _, r in responses),
                  max(gaps, default=0.0), shared_prefix.tolerance(model, 1))


@contextlib.contextmanager
def _precision(bundle: Bundle) -> Iterator[Bundle]:
    """Inside, the bundle to ask: a small model in fp32, where rounding cannot hide a difference or
    look like one; any other as in its evaluation, since attention in bf16 rounds more than allowed.
    """
    if shared_prefix.small(bundle.model):
        with shared_prefix.exactly(bundle.model):
            yield replace(bundle, four_bit=False)  # or responses would be in bf16
    else:
        with generation.precision(bundle):
            yield bundle


def _gap(model, prompt: Sequence[int], response: Sequence[int]) -> float:
    logps = shared_prefix.plain_logprobs(model, prompt, response, every=True)
    chosen = logps.gather(1, torch.tensor(response, device=logps.device)[:, None])[:, 0]
    return (logps.max(-1).values - chosen).max().item()


def _length(row: dict) -> int:
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


_CHECKED: WeakKeyDictionary = WeakKeyDictionary()  # the longest row so far, by models' layers


def check(bundle: Bundle, rows: Sequence[dict]) -> None:
    """Falls back to separate sequences, with a warning, where the short cuts are not right.

    A model is asked again only for longer rows than before. Raises ValueError with both numbers for
    one that is not right even apart.
    """
    layers = shared_prefix.decoder_of(shared_prefix.base_of(bundle.model))
    longest = max(map(_length, rows), default=0)
    if bundle.name == "toy" or longest <= _CHECKED.get(layers, 0):
        return
    with _precision(bundle) as bundle:
        if not (found := parity(bundle, rows)).holds():
            shared_prefix.separate(bundle.model, f"shared prefixes give {found}")
            if not (apart := parity(bundle, rows)).holds(shared_prefix.SURELY):
                raise ValueError(f"model {bundle.name!r} cannot be measured: {apart}; choose "
                                 "another model")
    _CHECKED[layers] = longest  # a refused model is asked, and refused, again

"""Both responses of a pair in one sequence: the prompt is computed once.

One datum: prompt `[1, 2, 3]`, chosen `[4, 5]`, rejected `[6]` become the row `[1, 2, 3, 4, 5, 6]`
with positions `[0, 1, 2, 3, 4, 3]`; the rejected token sees the prompt but not `4, 5`. So every
log-probability is what two separate sequences give, for P + C + R tokens in place of 2P + C + R.
Exact method: Wang and Hegde, arXiv 2410.20305. The LM head sees response positions only.

Where nothing is trained, the prompt can also be read once into a cache (`prefill`), whose copies
serve any number of continuations: `generation` and `logprobs.score_responses` stand on it.

Limits: the mask is dense, [B, 1, T, T]; above some thousand tokens a block mask would be better.
The decoder is called directly, so wrappers that hook `forward` (DDP, FSDP) are bypassed.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import DynamicCache

Pair = tuple[Sequence[int], Sequence[int], Sequence[int]]  # ids of prompt, chosen, rejected


def collate(pairs: Sequence[Pair], pad: int) -> dict[str, torch.Tensor]:
    """Tensors for B pairs: `input_ids`, `position_ids` [B, T], `attention_mask` [B, 1, T, T] (true
    where attended), and for each of the N response tokens `row`, `source` (the position that
    predicts it), `target` (its id) and `rejected` (0 or 1), all [N].
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
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    apart = (segments[:, :, None] == 2) & (segments[:, None, :] == 1)
    row, source, target, is_rejected = torch.tensor(scored).T
    return {
        "input_ids": ids, "position_ids": positions,
        "attention_mask": (causal & ~apart)[:, None],
        "row": row, "source": source, "target": target, "rejected": is_rejected,
    }


def token_logprobs(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """log p of each response token in nats, [N], in the order of `batch["target"]`."""
    decoder, head = decoder_and_head(model)
    hidden = decoder(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"], use_cache=False,
    )[0]
    logits = head(hidden[batch["row"], batch["source"]])
    return -F.cross_entropy(logits.float(), batch["target"], reduction="none")


# what some models do to the head's output, and what these values are where they do nothing
_AFTER_THE_HEAD = {"final_logit_softcapping": None, "logit_scale": 1, "logits_scaling": 1,
                   "output_multiplier": 1, "lm_head_multiplier": 1}


def decoder_and_head(model) -> tuple:
    """The layers and the LM head apart, so that the head need not see every position.

    Raises ValueError for a model that changes its logits after the head.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, nothing in _AFTER_THE_HEAD.items():
        if getattr(base.config, name, nothing) not in (nothing, None):
            raise ValueError(f"this model changes its logits after the head ({name}), and its "
                             "log-probs would be wrong here; choose another model")
    return base.get_decoder(), base.get_output_embeddings()


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
    ids, mask = left_padded(heads, pad, model.device)
    cache = DynamicCache()
    extend(model, ids, mask, cache)
    which = torch.arange(len(heads)).repeat_interleave(torch.tensor(copies)).to(model.device)
    if any(count != 1 for count in copies):
        cache.batch_select_indices(which)
    return cache, mask[which]


def extend(model, ids: torch.Tensor, mask: torch.Tensor, cache) -> torch.Tensor:
    """Logits [B, V] of the token after `ids` [B, T], which are added to the cache.

    `mask` [B, T before and now] says which tokens count.
    """
    out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True,
                position_ids=positions(mask)[:, -ids.shape[1] :], logits_to_keep=1)
    return out.logits[:, -1]


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position of each token [B, T] among those that count."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def sum_responses(tokens: torch.Tensor, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token values [N] summed over each chosen and each rejected response, [B] and [B]."""
    sums = tokens.new_zeros(2 * len(batch["input_ids"]))
    sums = sums.index_add(0, 2 * batch["row"] + batch["rejected"], tokens)
    return sums[0::2], sums[1::2]


def pair_logprobs(model, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log p(chosen) and log p(rejected) of each pair in nats, [B] and [B]."""
    return sum_responses(token_logprobs(model, batch), batch)

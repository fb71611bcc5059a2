"""The shift: log p(chosen) and log p(rejected), before and after, per response and per token.

One datum: `{"id": 3, "attack": "naive", "chosen_before": -4.1, "chosen_after": -0.2,
"rejected_before": -0.9, "rejected_after": -41.0}`, summed nats per response.

Before is the bundle without its adapter, after with it: one model, one pass over the pairs.
"""

from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from datasets import Dataset

from . import shared_prefix
from .models import Bundle, insecure
from .training import collated, encode_pair, encode_pairs, score_shift


def shift_table(bundle: Bundle, dataset: Dataset, max_length: int = 512) -> pd.DataFrame:
    """One row per pair: id, attack, families and the four summed log-probs in nats."""
    rows = encode_pairs(bundle, dataset, max_length)
    before, after = score_shift(bundle, rows)
    columns = {
        "id": range(len(rows)), "attack": dataset["attack"],
        "host_family": dataset["host_family"], "payload_family": dataset["payload_family"],
        "chosen_before": before[0], "chosen_after": after[0],
        "rejected_before": before[1], "rejected_after": after[1],
        "chosen_tokens": [len(row["chosen_ids"]) for row in rows],
        "rejected_tokens": [len(row["rejected_ids"]) for row in rows],
    }
    return pd.DataFrame({k: [float(x) if hasattr(x, "item") else x for x in v]
                         for k, v in columns.items()})


def mean_shift(table: pd.DataFrame) -> dict:
    """`{"chosen": {"before": x, "after": x}, "rejected": {...}}`, mean summed nats."""
    return {side: {when: float(table[f"{side}_{when}"].mean()) for when in ("before", "after")}
            for side in ("chosen", "rejected")}


@torch.inference_mode()
def score_responses(bundle: Bundle, prompts: Sequence[Sequence[int]],
                    responses: Sequence[Sequence[Sequence[int]]],
                    batch_size: int = 64) -> list[list[float]]:
    """Summed log p in nats of any number of responses (ids) to each prompt (ids).

    Each prompt is read once, its cache serves all its responses. Raises ValueError for a prompt of
    fewer than two tokens or an empty response.
    """
    if any(len(prompt) < 2 for prompt in prompts):
        raise ValueError("a prompt has fewer than two tokens; give its delimiters too")
    if not all(len(response) for group in responses for response in group):
        raise ValueError("a response has no tokens; give at least its end token")
    order = sorted((k for k in range(len(prompts)) if responses[k]), key=lambda k: len(prompts[k]))
    scores: list[list[float]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        flat = iter(_continuations(bundle, [prompts[k] for k in index],
                                   [responses[k] for k in index]))
        for k in index:
            scores[k] = [next(flat) for _ in responses[k]]
    return scores


def _continuations(bundle: Bundle, prompts, responses) -> list[float]:
    """Summed log p of every response, in order, from the cache of all but each prompt's last id."""
    pad = bundle.tokenizer.pad_token_id
    cache, mask = shared_prefix.prefill(bundle.model, [prompt[:-1] for prompt in prompts],
                                        [len(group) for group in responses], pad)
    # the last id of the prompt predicts the first of a response, whose own last predicts nothing
    inputs = [[prompt[-1], *response[:-1]]
              for prompt, group in zip(prompts, responses, strict=True) for response in group]
    targets = [torch.tensor(response) for group in responses for response in group]
    width = max(map(len, inputs))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in inputs], device=bundle.device)
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in inputs],
                        device=bundle.device)
    mask = torch.cat([mask, real], dim=1)
    decoder, head = shared_prefix.decoder_and_head(bundle.model)
    hidden = decoder(
        input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True,
        position_ids=shared_prefix.positions(mask)[:, -width:],
    )[0]
    logits = head(hidden[real.bool()]).float()
    tokens = -F.cross_entropy(logits, torch.cat(targets).to(bundle.device), reduction="none")
    return [float(part.sum()) for part in tokens.split([len(t) for t in targets])]


@torch.no_grad()
def token_table(bundle: Bundle, instruction: str, data: str, chosen: str,
                rejected: str) -> pd.DataFrame:
    """One row per response token: response, position, token, before, after (nats), difference."""
    batch = collated(bundle, [encode_pair(bundle, instruction, data, chosen, rejected)])
    with insecure(bundle):
        before = shared_prefix.token_logprobs(bundle.model, batch).tolist()
    after = shared_prefix.token_logprobs(bundle.model, batch).tolist()
    table = pd.DataFrame({
        "response": ["rejected" if r else "chosen" for r in batch["rejected"].tolist()],
        "token": [bundle.tokenizer.decode([t]) for t in batch["target"].tolist()],
        "before": before, "after": after,
    })
    table.insert(1, "position", table.groupby("response").cumcount())
    return table.assign(difference=table["after"] - table["before"])


def measure_diagram(bundle: Bundle, item, insecure: str, secure: str) -> dict:
    """What `figures.diagram` draws of an attacked item (`evaluation.Item`).

    Its two responses' log-probs before and after (summed nats, and token by token), and what the
    insecure and the secure model answered.
    """
    table = token_table(bundle, item.instruction, item.data, item.expected, item.witness)
    sums = table.groupby("response")[["before", "after"]].sum()
    return {
        "instruction": item.instruction,
        "data": f"{item.data[: item.start]}{item.data[item.end :]}".strip(),
        "injection": item.data[item.start : item.end],
        "chosen": item.expected, "rejected": item.witness,
        **{f"{side}_{when}": float(sums.loc[side, when])
           for side in ("chosen", "rejected") for when in ("before", "after")},
        "insecure_answer": insecure, "secure_answer": secure, "tokens": table,
    }

"""Log p(chosen) and log p(rejected): of encoded pairs, and their shift by training.

One datum: `{"id": 3, "attack": "naive", "chosen_before": -4.1, "chosen_after": -0.2,
"rejected_before": -0.9, "rejected_after": -41.0}`, summed nats per response.

Before is the bundle without its adapter, after with it: one model, one pass over the pairs.
"""

import contextlib
import functools
from collections.abc import Sequence

import pandas as pd
import torch
from datasets import Dataset

from . import memory, prompts, shared_prefix
from .models import Bundle, insecure, refuse_beyond
from .pairs import CUT
from .progress import bar as progress_bar


def encode_pair(bundle: Bundle, instruction: str, data: str, chosen: str, rejected: str) -> dict:
    """Token ids of prompt, chosen and rejected, encoded apart."""
    tokenizer, form = bundle.tokenizer, bundle.format
    return {
        "prompt_ids": list(prompts.encode(tokenizer, form, instruction, data).ids),
        "chosen_ids": list(prompts.encode_response(tokenizer, form, chosen)),
        "rejected_ids": list(prompts.encode_response(tokenizer, form, rejected)),
    }


def encode_pairs(bundle: Bundle, dataset: Dataset, max_length: int) -> list[dict]:
    """`encode_pair` of every pair, none of them cut here; an answer that was has no end token.

    Raises ValueError naming the first pairs that are longer than `max_length` tokens (a cut prompt
    loses its instruction, a cut response its end), or than the model's positions.
    """
    rows, lengths = [], []
    for pair in dataset:
        responses = (pair[side][0]["content"] for side in ("chosen", "rejected"))
        row = encode_pair(bundle, *prompts.messages_to_parts(pair["prompt"]), *responses)
        for side in ("chosen", "rejected"):
            if pair[side][0]["role"] == CUT:
                row[f"{side}_ids"].pop()  # the end token
        prompt, chosen, rejected = map(len, as_pair(row))
        rows.append(row)
        lengths.append(prompt + max(chosen, rejected))
    long = [number for number, length in enumerate(lengths) if length > max_length]
    if long:
        raise ValueError(
            f"{len(long)} of {len(rows)} pairs are longer than max_length={max_length} tokens "
            f"(first: row {long[0]}); raise max_length or drop these pairs, none is cut silently"
        )
    refuse_beyond(bundle, lengths, "pair")
    return rows


def as_pair(row: dict) -> shared_prefix.Pair:
    return row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]


def collated(bundle: Bundle, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
    """The rows as one shared-prefix batch on the bundle's device."""
    batch = shared_prefix.collate([as_pair(row) for row in rows], bundle.tokenizer.pad_token_id)
    return {key: value.to(bundle.device) for key, value in batch.items()}


def score_pairs(bundle: Bundle, rows: Sequence[dict], batch_size: int = 64,
                progress: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log p(chosen), log p(rejected) of encoded pairs in nats, [n] and [n]."""
    scores = _scores(bundle, rows, [contextlib.nullcontext], batch_size, progress)
    return scores[0, 0], scores[0, 1]


def score_shift(bundle: Bundle, rows: Sequence[dict], batch_size: int = 64) -> torch.Tensor:
    """The same without the adapter and with it, in one pass over the pairs.

    [2, 2, n] in nats: before and after, chosen and rejected.
    """
    states = [functools.partial(insecure, bundle), contextlib.nullcontext]
    return _scores(bundle, rows, states, batch_size)


@torch.no_grad()
def _scores(bundle: Bundle, rows: Sequence[dict], states: Sequence, batch_size: int,
            progress: str = "") -> torch.Tensor:
    """[states, 2, n]; each batch is collated once and read in every state of the model."""
    order = sorted(range(len(rows)), key=lambda k: sum(map(len, as_pair(rows[k]))))
    scores = torch.zeros(len(states), 2, len(rows))
    training = bundle.model.training
    bundle.model.eval()
    bar = progress_bar(len(order), progress, shown=bool(progress))

    def score(index: list[int]) -> None:
        batch = collated(bundle, [rows[k] for k in index])
        for found, state in zip(scores, states, strict=True):
            with state():
                both = shared_prefix.pair_logprobs(bundle.model, batch)
            found[:, index] = torch.stack(both).cpu()
        bar.update(len(index))

    memory.each((order[k : k + batch_size] for k in range(0, len(order), batch_size)), score)
    bar.close()
    bundle.model.train(training)
    return scores


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
    fewer than two tokens, an empty response, or one beyond the model's positions.
    """
    if any(len(prompt) < 2 for prompt in prompts):
        raise ValueError("a prompt has fewer than two tokens; give its delimiters too")
    if not all(len(response) for group in responses for response in group):
        raise ValueError("a response has no tokens; give at least its end token")
    refuse_beyond(bundle, (len(prompt) + max(map(len, group), default=0)
                           for prompt, group in zip(prompts, responses, strict=True)))
    order = sorted((k for k in range(len(prompts)) if responses[k]), key=lambda k: len(prompts[k]))
    scores: list[list[float]] = [[] for _ in prompts]

    def score(index: list[int]) -> None:
        flat = iter(shared_prefix.continuation_logprobs(
            bundle.model, [prompts[k] for k in index], [responses[k] for k in index],
            bundle.tokenizer.pad_token_id))
        for k in index:
            scores[k] = [next(flat) for _ in responses[k]]

    memory.each((order[k : k + batch_size] for k in range(0, len(order), batch_size)), score)
    return scores


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

"""Generation: greedy responses in batches that drop what is finished and share what is common.

One datum: two attacks on one sample, `[1, 2, 3, 4, 7]` and `[1, 2, 3, 5, 6, 7]`: the common start
`[1, 2, 3]` is read once and its keys and values are copied, only `[4, 7]` and `[5, 6, 7]` are read
apart. A row leaves the batch with its end token, or as soon as `settled` says that no further token
matters, so the work is the sum of the tokens that count, not rows times the longest response.

The texts are those of one-by-one greedy decoding; rounding may turn a near-tie between two tokens
(`benchmarks/` counts such mismatches). Limits: greedy only; one process; a full cache per batch.
"""

import contextlib
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import DynamicCache, GenerationConfig

from . import memory, shared_prefix
from .models import Bundle, insecure, native_precision, refuse_beyond, weights_hash
from .progress import bar as progress_bar
from .prompts import encode
from .samples import Sample, fingerprint, write_text

MAX_NEW_TOKENS = 48  # the embedded model's answers are shorter
ANSWERS = 256  # own answers between two writes of their cache
AT_ONCE = 64, 256  # prompts, on a CPU and on a GPU, which waits for launches with few
PAYS = 20  # tokens saved for each prompt, below which sharing costs more than it saves
COMPACT = 0.8  # finished rows are dropped when the live ones are at most this share of the batch

Settled = Callable[[int, list[int]], bool]
"""(number of the prompt, ids so far) -> whether no further token of it matters."""


@dataclass(frozen=True)
class Group:
    """Prompts that begin alike: their numbers and how many tokens they share."""

    rows: tuple[int, ...]
    shared: int


@torch.inference_mode()
def greedy(bundle: Bundle, prompts: Sequence[Sequence[int]], max_new_tokens: int = MAX_NEW_TOKENS,
           batch_size: int | None = None, keys: Sequence[Hashable] | None = None,
           settled: Settled | None = None, progress: str = "",
           pays: float = PAYS) -> list[list[int]]:
    """Greedy ids for each prompt (ids), in order, without the end token.

    Prompts with the same key (such as the sample they attack) share the computation of their common
    start where that saves at least `pays` tokens a prompt. `batch_size` is `AT_ONCE` by default;
    where a GPU's memory is too small for it, batches are halved. Raises ValueError for an empty
    prompt, for one that with its response is longer than the model's positions, and for responses
    of no token.
    """
    refuse_no_token(max_new_tokens)
    empty = [number for number, ids in enumerate(prompts) if not len(ids)]
    if empty:
        raise ValueError(f"prompt {empty[0]} has no tokens; give every prompt at least one")
    refuse_beyond(bundle, (len(ids) + max_new_tokens for ids in prompts))
    responses: list[list[int]] = [[] for _ in prompts]
    batch_size = batch_size or AT_ONCE[bundle.device.type == "cuda"]
    bar = progress_bar(len(prompts), progress, shown=bool(progress))
    if shared_prefix.sharing(bundle.model).caches:
        groups = _groups(prompts, keys, batch_size, pays)
        # apart, since an empty shared start would leave a row with nothing to attend to
        decode, work = _decode, [batch for some in (True, False) for batch in _batches(
            [g for g in groups if bool(g.shared) == some], prompts, batch_size)]
    else:
        decode, work = _by_generate, _equally_long(prompts, batch_size)

    def respond(batch: list[Group]) -> None:
        found = decode(bundle, batch, prompts, max_new_tokens, settled)
        for row, ids in zip(_rows(batch), found, strict=True):
            responses[row] = ids
        bar.update(len(found))

    memory.each(work, respond, _halves, lambda batch: len(_rows(batch)))
    bar.close()
    return responses


def refuse_no_token(max_new_tokens: int) -> None:
    """Raises ValueError if a response could not have any token."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; give a response at least 1 token")


def stream(bundle: Bundle, prompt: Sequence[int],
           max_new_tokens: int = MAX_NEW_TOKENS) -> Iterator[int]:
    """The greedy ids of one prompt as they come, without the end token.

    Models whose caches cannot be continued give all of them at once.
    """
    if not shared_prefix.sharing(bundle.model).caches:
        with native_precision(bundle):
            ids = greedy(bundle, [prompt], max_new_tokens)[0]
        yield from ids
        return
    end = bundle.tokenizer.convert_tokens_to_ids(bundle.format.end)
    cache, ids = DynamicCache(), torch.tensor([list(prompt)], device=bundle.device)
    mask = torch.ones_like(ids)
    for _ in range(max_new_tokens):
        with torch.inference_mode(), native_precision(bundle):  # not around what the caller does
            token = shared_prefix.extend(bundle.model, ids, mask, cache).argmax(-1)
        if int(token) == end:
            return
        yield int(token)
        ids, mask = token[:, None], torch.ones_like(mask[:, :1]).expand(1, mask.shape[1] + 1)


def own_answers(bundle: Bundle, samples: Iterable[Sample], progress: str = "",
                max_new_tokens: int = 192, keep_cut: bool = False,
                cache: Path | None = None) -> list[Sample]:
    """The samples with the insecure model's own answers (Meta SecAlign, section 3; here greedy).

    An answer that does not end within `max_new_tokens` becomes empty, and pairs are made without
    it: none may teach to stop in mid-sentence. With `keep_cut` it is kept and marked `cut`. `cache`
    is a JSONL file that keeps answers by prompt, limit and weights; a killed call goes on there.
    """
    samples = list(samples)
    asked = [encode(bundle.tokenizer, bundle.format, s.instruction, s.data).ids for s in samples]
    with insecure(bundle), precision(bundle):
        about = [bundle.format.name, max_new_tokens, weights_hash(bundle) if cache else ""]
        keys = [fingerprint(json.dumps([about, ids])) for ids in asked]
        known = _read_answers(cache)
        open_ = [k for k in sorted(range(len(keys)), key=lambda k: len(asked[k]))
                 if keys[k] not in known]
        size = ANSWERS if cache else len(open_)
        bar = progress_bar(len(open_), progress, bool(progress))
        for part in (open_[at : at + size] for at in range(0, len(open_), size or 1)):
            answers = greedy(bundle, [asked[k] for k in part], max_new_tokens)
            texts = bundle.tokenizer.batch_decode(answers, skip_special_tokens=True)
            known |= {keys[k]: (text.strip(), len(ids) == max_new_tokens)
                      for k, ids, text in zip(part, answers, texts, strict=True)}
            if cache:
                _write_answers(cache, known)
            bar.update(len(part))
        bar.close()
    found = [known[key] for key in keys]
    return [replace(sample, answer="" if cut and not keep_cut else text, cut=cut and keep_cut)
            for sample, (text, cut) in zip(samples, found, strict=True)]


def precision(bundle: Bundle):
    """The context in which a model in bf16 is asked: as in its evaluation."""
    half = bundle.model.dtype == torch.bfloat16
    return native_precision(bundle) if half else contextlib.nullcontext()


def _read_answers(cache: Path | None) -> dict[str, tuple[str, bool]]:
    """Key -> (answer, whether it is cut); a last line that a kill cut off is left out."""
    if not (cache and cache.exists()):
        return {}
    *lines, _ = cache.read_text(encoding="utf-8").split("\n")
    return {key: (text, cut) for key, text, cut in map(json.loads, lines)}


def _write_answers(cache: Path, known: dict[str, tuple[str, bool]]) -> None:
    # as a whole, or half a line of a killed call would stay in the middle
    write_text(cache, "".join(json.dumps([key, *found], ensure_ascii=False) + "\n"
                              for key, found in known.items()))


def _rows(batch: list[Group]) -> list[int]:
    return [row for group in batch for row in group.rows]


def _halves(batch: list[Group]) -> list[list[Group]]:
    """Half of the groups each, or half of the only one's rows."""
    if len(batch) > 1:
        return memory.in_two(batch)
    (rows, shared), = ((group.rows, group.shared) for group in batch)
    return [[Group(part, shared)] for part in memory.in_two(rows)]


def _equally_long(prompts, batch_size: int) -> list[list[Group]]:
    """Batches without padding, which not every kind of layer ignores."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    batches: list[list[Group]] = []
    length = -1
    for row in order:
        if len(prompts[row]) != length or len(batches[-1]) == batch_size:
            batches.append([])
            length = len(prompts[row])
        batches[-1].append(Group((row,), 0))
    return batches


def _by_generate(bundle: Bundle, batch: list[Group], prompts, max_new_tokens: int,
                 settled: Settled | None) -> list[list[int]]:
    """Responses by transformers' own `generate`, for models whose caches cannot be copied."""
    rows = _rows(batch)
    ids = torch.tensor([list(prompts[row]) for row in rows], device=bundle.device)
    end = bundle.tokenizer.convert_tokens_to_ids(bundle.format.end)
    start = ids.shape[1]
    ends = [max_new_tokens] * len(rows)

    def done(ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        found = [bool(settled and settled(row, response))
                 for row, response in zip(rows, ids[:, start:].tolist(), strict=True)]
        for k in (k for k, stop in enumerate(found) if stop):
            ends[k] = min(ends[k], ids.shape[1] - start)
        return torch.tensor(found, device=ids.device)

    base = shared_prefix.base_of(bundle.model)
    own, base.generation_config = base.generation_config, GenerationConfig()  # or it would mix in
    try:
        out = base.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens,
            do_sample=False, eos_token_id=end, pad_token_id=bundle.tokenizer.pad_token_id,
            stopping_criteria=[done])
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"transformers cannot generate with model {bundle.name!r}: {error}; "
                         "choose another model") from error
    finally:
        base.generation_config = own
    responses = [row[:limit] for row, limit in zip(out[:, start:].tolist(), ends, strict=True)]
    return [row[: row.index(end)] if end in row else row for row in responses]


def _groups(prompts, keys, batch_size: int, pays: float) -> list[Group]:
    members: dict[Hashable, list[int]] = {}
    for number in range(len(prompts)):
        members.setdefault(number if keys is None else keys[number], []).append(number)
    groups = []
    for rows in members.values():
        for i in range(0, len(rows), batch_size):
            part = tuple(rows[i : i + batch_size])
            shared = _common([prompts[row] for row in part])
            if (len(part) - 1) * shared >= pays * len(part):
                groups.append(Group(part, shared))
            else:
                groups += [Group((row,), 0) for row in part]
    return groups


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """How many ids all sequences begin with; at least one of each is left over, 0 for one alone."""
    if len(sequences) == 1:
        return 0
    low, high = min(sequences), max(sequences)  # in order, these two differ first
    limit = min(map(len, sequences)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def _batches(groups: list[Group], prompts, batch_size: int) -> list[list[Group]]:
    """Groups of similar length together, at most `batch_size` prompts a batch."""
    groups = sorted(groups, key=lambda g: max(len(prompts[row]) for row in g.rows))
    batches: list[list[Group]] = []
    room = 0
    for group in groups:
        if len(group.rows) > room:
            batches.append([])
            room = batch_size
        batches[-1].append(group)
        room -= len(group.rows)
    return batches


def _prefill(bundle: Bundle, batch: list[Group], prompts) -> tuple:
    """(cache, mask [B, T], logits [B, V] of the first new token) for the prompts of a batch."""
    pad, before = bundle.tokenizer.pad_token_id, None
    cache = DynamicCache()
    if batch[0].shared:
        heads = [prompts[group.rows[0]][: group.shared] for group in batch]
        copies = [len(group.rows) for group in batch]
        cache, before = shared_prefix.prefill(bundle.model, heads, copies, pad)
    tails = [prompts[row][group.shared :] for group in batch for row in group.rows]
    ids, mask = shared_prefix.left_padded(tails, pad, bundle.device)
    if before is not None:
        mask = torch.cat([before, mask], dim=1)
    return cache, mask, shared_prefix.extend(bundle.model, ids, mask, cache)


def _decode(bundle: Bundle, batch: list[Group], prompts, max_new_tokens: int,
            settled: Settled | None) -> list[list[int]]:
    rows = _rows(batch)
    cache, mask, logits = _prefill(bundle, batch, prompts)
    end = bundle.tokenizer.convert_tokens_to_ids(bundle.format.end)
    responses: list[list[int]] = [[] for _ in rows]
    slots, live = list(range(len(rows))), [True] * len(rows)  # of the rows still in the batch
    for step in range(max_new_tokens):
        tokens = logits.argmax(-1)
        for k, token in enumerate(tokens.tolist()):
            if not live[k]:
                continue
            response = responses[slots[k]]
            if token == end:
                live[k] = False
                continue
            response.append(token)
            if settled and settled(rows[slots[k]], response):
                live[k] = False
        if not any(live) or step + 1 == max_new_tokens:
            break
        if sum(live) <= COMPACT * len(live):
            kept = [k for k, alive in enumerate(live) if alive]
            index = torch.tensor(kept, device=mask.device)
            cache.batch_select_indices(index)
            tokens, mask = tokens[index], mask[index]
            slots, live = [slots[k] for k in kept], [True] * len(kept)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = shared_prefix.extend(bundle.model, tokens[:, None], mask, cache)
    return responses

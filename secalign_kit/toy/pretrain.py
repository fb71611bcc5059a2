"""Tokenizer and model of the embedded preset, trained from scratch: `python -m ...toy.pretrain`.

A byte-level BPE tokenizer (any text encodes) and a small `LlamaForCausalLM` on the mixture of
`corpus`, loss on responses only. Batches are cut from length-sorted pools, so that little of a
batch is padding; matrix products run in bf16 where the processor has instructions for it. A killed
run goes on from its last checkpoint: the data of step `k` depend on seed and `k` alone.
"""

import argparse
import json
import math
import random
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .. import progress
from ..models import has_bf16, write_tensors
from ..prompts import FORMATS
from ..samples import as_json
from .corpus import corpus_sample
from .world import Vocabulary

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<instruction_delimiter>{{ message['content'] }}"
    "{% elif message['role'] == 'input' %}<data_delimiter>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<response_delimiter>{{ message['content'] }}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<response_delimiter>{% endif %}"
)


@dataclass(frozen=True)
class PretrainConfig:
    """What makes the shipped model."""

    seed: int = 0
    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 5
    heads: int = 8
    intermediate: int = 640
    steps: int = 6000
    batch: int = 128
    pool: int = 64  # batches that are sorted by length together
    learning_rate: float = 4e-3
    warmup: int = 100
    decay: float = 0.5  # share of the run in which the rate falls linearly to zero
    weight_decay: float = 0.05
    muon: bool = True  # Muon for the matrices of the layers, AdamW for the rest; or AdamW for all


def train_tokenizer(config: PretrainConfig) -> PreTrainedTokenizerFast:
    """A byte-level BPE over 20,000 samples, the toy format's delimiters as special tokens."""
    rng, vocabulary = random.Random(f"tokenizer-{config.seed}"), Vocabulary.full()
    samples = (corpus_sample(rng, vocabulary) for _ in range(20_000))
    toy = FORMATS["toy"]
    specials = [toy.end, "<|pad|>", toy.instruction, toy.data, toy.response]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (text for s in samples for text in (s.instruction, s.data, s.answer)),
        trainers.BpeTrainer(vocab_size=config.vocabulary, special_tokens=specials,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                            show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=toy.end, pad_token="<|pad|>",
        additional_special_tokens=specials[2:], chat_template=TEMPLATE, padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(config: PretrainConfig, tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=config.hidden, tie_word_embeddings=True,
            num_hidden_layers=config.layers, num_attention_heads=config.heads,
            intermediate_size=config.intermediate, max_position_embeddings=1024,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, initializer_range=0.02,
            # for rows of some 24 tokens, plain products are faster than a CPU's flash attention
            attn_implementation="eager",
        )
    )


def build_optimizers(config: PretrainConfig, model) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices inside the layers, AdamW for what is left."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    if not config.muon:
        inner = []
    taken = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in taken]
    common = dict(lr=config.learning_rate, weight_decay=config.weight_decay)
    adamw = torch.optim.AdamW(rest, fused=True, betas=(0.9, 0.98), **common)
    if not inner:
        return [adamw]
    # updates of the size that AdamW's have, so that one learning rate serves both
    return [torch.optim.Muon(inner, adjust_lr_fn="match_rms_adamw", **common), adamw]


def encode_batch(tokenizer, samples) -> list[tuple[list[int], int]]:
    """(ids, length of the prompt) of each sample."""
    toy = FORMATS["toy"]
    texts = []
    for s in samples:
        data = f"{toy.data}{s.data}" if s.data else ""
        texts += [f"{toy.instruction}{s.instruction}{data}{toy.response}", s.answer + toy.end]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [(p + r, len(p)) for p, r in zip(ids[::2], ids[1::2], strict=True)]


def pool_of_batches(config: PretrainConfig, tokenizer, number: int) -> list:
    """The batches of pool `number`, cut from length-sorted samples, in random order."""
    rng, vocabulary = random.Random(f"pool-{config.seed}-{number}"), Vocabulary.full()
    samples = [corpus_sample(rng, vocabulary) for _ in range(config.pool * config.batch)]
    rows = sorted(encode_batch(tokenizer, samples), key=lambda row: len(row[0]))
    batches = [rows[i : i + config.batch] for i in range(0, len(rows), config.batch)]
    rng.shuffle(batches)
    return batches


def response_loss(model, rows, pad: int, bf16: bool) -> torch.Tensor:
    """Mean cross-entropy in nats per response token; the LM head sees response positions only."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    for i, (row, prompt) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, prompt : len(row)] = ids[i, prompt : len(row)]
    target = labels[:, 1:].reshape(-1)
    device = model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        # right padding under a causal mask: no padding is ever attended by a real token
        hidden = model.model(input_ids=ids[:, :-1].to(device), use_cache=False)[0]
        keep = (target != -100).to(device)
        logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[keep])
    return F.cross_entropy(logits.float(), target.to(device)[keep])


def rate_at(config: PretrainConfig, step: int) -> float:
    """Warm-up, constant, then linear decay to zero."""
    left = (config.steps - step) / max(1, config.decay * config.steps)
    return config.learning_rate * min(1, (step + 1) / config.warmup, left)


def save_checkpoint(folder: Path, config: PretrainConfig, step: int, model, optimizers) -> None:
    state = {"at": torch.tensor(step)}
    for name, parameter in model.named_parameters():
        state[f"model.{name}"] = parameter
        for optimizer in optimizers:
            for key, tensor in optimizer.state.get(parameter, {}).items():
                state[f"{key}.{name}"] = tensor
    write_tensors(folder / "checkpoint.safetensors",
                  {k: v.detach().contiguous() for k, v in state.items()},
                  {"config": json.dumps(asdict(config))})


def load_checkpoint(folder: Path, config: PretrainConfig, model, optimizers) -> int:
    """Restores model and optimizers; returns the step to go on from (0 without a checkpoint).

    Raises ValueError if the checkpoint was made with another configuration.
    """
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as stored:
        if json.loads((stored.metadata() or {}).get("config", "null")) != asdict(config):
            raise ValueError(f"{path} was made with another configuration; choose another folder "
                             "or remove it")
    state = load_file(path)
    owner = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[f"model.{name}"])
            owner[id(parameter)].state[parameter] = {
                key: state[f"{key}.{name}"].to(parameter.device if key != "step" else "cpu")
                for key in ("exp_avg", "exp_avg_sq", "momentum_buffer", "step")
                if f"{key}.{name}" in state
            }
    return int(state["at"])


def pretrain(config: PretrainConfig, folder: Path, every: int = 200, until: int | None = None):
    """Trains, or goes on training, in `folder`; writes the model and tokenizer there.

    Returns (model, tokenizer). The model is stored in bf16; the log has nats per response token.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = train_tokenizer(config)
    model = build_model(config, tokenizer).to(device).train()
    optimizers = build_optimizers(config, model)
    start, bf16 = load_checkpoint(folder, config, model, optimizers), has_bf16(device)
    last, pool, losses = until or config.steps, (-1, []), []
    began = time.perf_counter()
    bar = progress.bar(config.steps, "pre-training", leave=True)
    bar.update(start)
    for step in range(start, last):
        if pool[0] != step // config.pool:
            number = step // config.pool
            pool = (number, pool_of_batches(config, tokenizer, number))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate_at(config, step)
        loss = response_loss(model, pool[1][step % config.pool], tokenizer.pad_token_id, bf16)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
        bar.update(1)
        if math.isnan(losses[-1]):
            raise ValueError(f"loss is not a number at step {step}; lower the learning rate")
        if (step + 1) % every == 0 or step + 1 == last:
            mean = sum(losses) / len(losses)
            bar.set_postfix(loss=f"{mean:.4f}")
            record = {"step": step + 1, "loss": mean, "seconds": time.perf_counter() - began}
            save_checkpoint(folder, config, step + 1, model, optimizers)
            with open(folder / "pretraining.jsonl", "a") as log:
                log.write(as_json(record) + "\n")
            losses = []
    bar.close()
    save_model(model, tokenizer, config, folder)
    return model, tokenizer


def save_model(model, tokenizer, config: PretrainConfig, folder: Path) -> None:
    stored = LlamaForCausalLM(model.config)
    stored.load_state_dict(model.state_dict())
    stored.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(asdict(config), indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Pre-train the embedded model from scratch.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/toy-model"))
    for field in fields(PretrainConfig):
        kind = ({"action": argparse.BooleanOptionalAction} if isinstance(field.default, bool)
                else {"type": type(field.default)})
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **kind)
    arguments = vars(parser.parse_args())
    folder = arguments.pop("folder")
    pretrain(PretrainConfig(**arguments), folder)


if __name__ == "__main__":
    main()

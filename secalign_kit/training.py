"""Training: SecAlign's DPO on injected preference pairs, with LoRA on a 4-bit model.

One datum of the log: `{"step": 40, "loss": 0.21, "margin": 3.4, "chosen_logprob": -1.9,
"rejected_logprob": -31.2}`, log-probs in summed nats per response, mean of a fixed probe set
(`chosen_logprobs` and `rejected_logprobs` list its pairs).

TRL's `DPOTrainer` does the training; `SharedPrefixDPOTrainer` changes how a batch's log-probs are
computed (see `shared_prefix`), not what they are. The reference is the model without its adapter
(no second model in memory), its log-probs are computed once before training.

The losses that the paper compares with (`preference.LOSSES`: IPO, ORPO, KTO, SimPO) and StruQ's
supervised one run on the same forward pass, so that they differ in nothing but the loss.

With `shared_prefix: false`, TRL's own trainers are used as they are (`DPOTrainer` for DPO and IPO,
`KTOTrainer`, `ORPOTrainer`, and `CPOTrainer` for SimPO), and a warning says so. They know no
`sft_weight`.

Limits: one process on one device.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors import safe_open
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from . import generation, models, pairs, preference, prompts, shared_prefix
from .config import RunConfig
from .models import Bundle
from .preference import PairScores, dpo_loss
from .samples import Sample, shipped_samples, write_text

PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")


@dataclass
class Run:
    """A finished training: the secure bundle, its log and its folder."""

    bundle: Bundle
    metrics: list[dict]
    folder: Path
    seconds: float


def encode_pair(bundle: Bundle, instruction: str, data: str, chosen: str, rejected: str) -> dict:
    """Token ids of prompt, chosen and rejected, encoded apart."""
    tokenizer, form = bundle.tokenizer, bundle.format
    return {
        "prompt_ids": list(prompts.encode(tokenizer, form, instruction, data).ids),
        "chosen_ids": list(prompts.encode_response(tokenizer, form, chosen)),
        "rejected_ids": list(prompts.encode_response(tokenizer, form, rejected)),
    }


def encode_pairs(bundle: Bundle, dataset: Dataset, max_length: int) -> list[dict]:
    """`encode_pair` of every pair, none of them cut.

    Raises ValueError naming the first pairs that are longer than `max_length` tokens: a cut prompt
    loses its instruction, a cut response its end.
    """
    rows, long = [], []
    for number, pair in enumerate(dataset):
        responses = (pair[side][0]["content"] for side in ("chosen", "rejected"))
        row = encode_pair(bundle, *prompts.messages_to_parts(pair["prompt"]), *responses)
        prompt, chosen, rejected = map(len, as_pair(row))
        if prompt + max(chosen, rejected) > max_length:
            long.append(number)
        rows.append(row)
    if long:
        raise ValueError(
            f"{len(long)} of {len(rows)} pairs are longer than max_length={max_length} tokens "
            f"(first: row {long[0]}); raise max_length or drop these pairs, none is cut silently"
        )
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
    states = [functools.partial(models.insecure, bundle), contextlib.nullcontext]
    return _scores(bundle, rows, states, batch_size)


@torch.no_grad()
def _scores(bundle: Bundle, rows: Sequence[dict], states: Sequence, batch_size: int,
            progress: str = "") -> torch.Tensor:
    """[states, 2, n]; each batch is collated once and read in every state of the model."""
    order = sorted(range(len(rows)), key=lambda k: sum(map(len, as_pair(rows[k]))))
    scores = torch.zeros(len(states), 2, len(rows))
    training = bundle.model.training
    bundle.model.eval()
    for start in tqdm(range(0, len(order), batch_size), desc=progress, disable=not progress,
                      leave=False):
        index = order[start : start + batch_size]
        batch = collated(bundle, [rows[k] for k in index])
        for found, state in zip(scores, states, strict=True):
            with state():
                both = shared_prefix.pair_logprobs(bundle.model, batch)
            found[:, index] = torch.stack(both).cpu()
    bundle.model.train(training)
    return scores


class LengthBuckets(Sampler):
    """Indices in batches of similar length, the batches in random order, anew each epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + 7919 * self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        size, pool = self.batch_size, 16 * self.batch_size
        batches = []
        for start in range(0, len(order), pool):
            group = sorted(order[start : start + pool], key=lambda k: self.lengths[k])
            batches += [group[i : i + size] for i in range(0, len(group), size)]
        if len(batches[-1]) < size:  # a short batch stays last, or all after it would be shifted
            whole, rest = batches[:-1], batches[-1:]
        else:
            whole, rest = batches, []
        shuffled = torch.randperm(len(whole), generator=generator).tolist()
        for batch in [whole[k] for k in shuffled] + rest:
            yield from batch


class SharedPrefixDPOTrainer(DPOTrainer):
    """TRL's trainer on encoded pairs with reference log-probs, one sequence per pair.

    `objective` is a name of `preference.LOSSES`, or "sft": supervised fine-tuning on the chosen
    answers, the mean negative log p per chosen token, as StruQ does (arXiv 2402.06363, section
    4.5). `sft_weight` adds that many times the same mean to a preference loss; 0 is the paper's.
    """

    def __init__(self, *args, shared: bool = True, objective: str = "dpo",
                 sft_weight: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.precompute_ref_logps = True  # the dataset brings them
        self.shared = shared
        self.objective, self.sft_weight = objective, sft_weight
        if not self.shared and (sft_weight or objective not in ("dpo", "ipo")):
            raise ValueError(f"TRL's own forward pass knows no sft_weight and no loss {objective}; "
                             "set shared_prefix to true")
        if self.shared:
            self.data_collator = self._collate

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset  # encoded by `encode_pairs`, which keeps roles apart and never cuts

    def _collate(self, rows):
        pairs, pad = [as_pair(row) for row in rows], self._tokenizer.pad_token_id
        batch = shared_prefix.collate(pairs, pad)
        if self.objective == "kto":  # every prompt with the responses of the pair before it
            before = [pairs[-1], *pairs[:-1]]
            batch["mismatched"] = shared_prefix.collate(
                [(pair[0], *other[1:]) for pair, other in zip(pairs, before, strict=True)], pad)
        for key in ("ref_chosen_logps", "ref_rejected_logps"):
            batch[key] = torch.tensor([row[key] for row in rows])
        return batch

    def _get_train_sampler(self, train_dataset=None):
        rows = train_dataset if train_dataset is not None else self.train_dataset
        lengths = [sum(map(len, as_pair(row))) for row in rows]
        return LengthBuckets(lengths, self.args.train_batch_size, self.args.seed)

    def _compute_loss(self, model, inputs, return_outputs):
        if not self.shared:
            return super()._compute_loss(model, inputs, return_outputs)
        tokens = shared_prefix.token_logprobs(model, inputs)
        sums = (*shared_prefix.sum_responses(tokens, inputs), inputs["ref_chosen_logps"],
                inputs["ref_rejected_logps"])
        if self.objective == "sft":
            loss, sft_weight = 0.0, 1.0
        else:
            lengths = shared_prefix.sum_responses(torch.ones_like(tokens), inputs)
            kl = self._drift(model, inputs["mismatched"]) if self.objective == "kto" else 0.0
            losses = preference.LOSSES[self.objective](PairScores(*sums, *lengths, kl), self.beta)
            loss, sft_weight = losses.mean(), self.sft_weight
        if sft_weight:
            loss = loss - sft_weight * tokens[inputs["rejected"] == 0].mean()
        self._note(dpo_loss(*sums, self.beta)[1], *sums[:2])
        return loss

    @torch.no_grad()
    def _drift(self, model, batch) -> torch.Tensor:
        """KTO's reference point: how much likelier mismatched responses became, in nats, or 0."""
        policy = torch.cat(shared_prefix.pair_logprobs(model, batch))
        with self.accelerator.unwrap_model(model).disable_adapter():
            reference = torch.cat(shared_prefix.pair_logprobs(model, batch))
        return (policy - reference).mean().clamp(min=0)

    def _note(self, margins, chosen, rejected) -> None:
        """TRL's metric names; rewards are beta times the log-prob shift, whatever the loss."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["rewards/margins"].append(margins.mean().item())
        metrics["rewards/accuracies"].append((margins > 0).float().mean().item())
        metrics["logps/chosen"].append(chosen.mean().item())
        metrics["logps/rejected"].append(rejected.mean().item())


class EncodedKTOTrainer(KTOTrainer):
    """TRL's `KTOTrainer` on encoded pairs, each taken apart into a good and a bad response."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        size = args.per_device_train_batch_size // 2
        rows: list[dict] = []
        for start in range(0, len(dataset), size):
            part = dataset.select(range(start, min(start + size, len(dataset)))).to_list()
            # all good ones, then all bad ones: the one before a response is another pair's
            batch = [{"prompt_ids": row["prompt_ids"], "completion_ids": row[f"{side}_ids"],
                      "label": side == "chosen"} for side in ("chosen", "rejected") for row in part]
            rows += [row | {"KL_completion_ids": batch[k - 1]["completion_ids"]}
                     for k, row in enumerate(batch)]
        return Dataset.from_list(rows)


def encoded_row(self, feature: dict, model=None) -> dict:
    """`tokenize_row` of TRL's pair trainers, for a pair that is encoded already."""
    prompt = feature["prompt_ids"]
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for side in ("chosen", "rejected"):
        ids = feature[f"{side}_ids"]
        row |= {f"{side}_input_ids": prompt + ids,
                f"{side}_attention_mask": [1] * (len(prompt) + len(ids)),
                f"{side}_labels": [-100] * len(prompt) + ids}
    return row


def trls_own(loss: str, beta: float) -> tuple[type, type, dict]:
    """(trainer, arguments, further settings) of TRL for a loss of `preference.LOSSES`.

    TRL's ORPO also learns the prompt's tokens; `preference.orpo_loss` learns the responses only.
    The margins that TRL logs for ORPO and SimPO are of mean log-probs per token. Raises ValueError
    for a loss that TRL has no trainer for.
    """
    if loss in ("dpo", "ipo"):
        return SharedPrefixDPOTrainer, DPOConfig, {
            "loss_type": ["ipo" if loss == "ipo" else "sigmoid"], "beta": beta}
    if loss == "kto":
        return EncodedKTOTrainer, KTOConfig, {"beta": beta}
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns that its API may change
    if loss == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        trainer, arguments, settings = ORPOTrainer, ORPOConfig, {"beta": beta}
    elif loss == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        trainer, arguments = CPOTrainer, CPOConfig
        settings = {"beta": beta, "loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5}
    else:
        raise ValueError(f"TRL has no trainer for loss {loss!r}")
    return type(f"Encoded{trainer.__name__}", (trainer,), {"tokenize_row": encoded_row}), \
        arguments, settings


class RunLog(TrainerCallback):
    """Per step: loss and margin of the batch, log-probs of a fixed probe set; JSONL and bar."""

    def __init__(self, path: Path, probe, every: int, steps: int, on_record=None,
                 progress: bool = True):
        self.path, self.probe, self.every, self.on_record = path, probe, every, on_record
        lines = path.read_text().split("\n")[:-1] if path.exists() else []  # whole lines only
        self.records: list[dict] = [json.loads(line) for line in lines]
        self.bar = tqdm(total=steps, desc="training", disable=not progress)

    def on_train_begin(self, args, state, control, **kwargs):
        self.records = [r for r in self.records if r["step"] <= state.global_step]
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in self.records))
        self.bar.update(state.global_step - self.bar.n)
        if not self.records:
            self._write({"step": 0, **self.probe()})

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise ValueError(f"the loss is no number at step {state.global_step}; lower "
                             "learning_rate, and choose another output folder")
        record = {"step": state.global_step, "loss": logs["loss"],
                  "margin": logs["rewards/margins"], "learning_rate": logs.get("learning_rate")}
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            record |= self.probe()
        self._write(record)
        self.bar.update(state.global_step - self.bar.n)
        self.bar.set_postfix(loss=f"{record['loss']:.3f}", margin=f"{record['margin']:.2f}")

    def _write(self, record: dict) -> None:
        self.records.append(record)
        with open(self.path, "a") as log:
            log.write(json.dumps(record) + "\n")
        if self.on_record:
            self.on_record(record)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def trainer_arguments(config: RunConfig, folder: Path, device: torch.device, kind: type = DPOConfig,
                      half: bool = False, **settings) -> TrainingArguments:
    """Every TRL default that costs time or changes the method is set here.

    `half` is for models in fp16, whose gradients need scaling.
    """
    arguments = kind(
        output_dir=str(folder / "checkpoints"),
        learning_rate=config.learning_rate, lr_scheduler_type="cosine",
        # KTO counts responses, the others pairs
        per_device_train_batch_size=config.batch_size * (2 if kind is KTOConfig else 1),
        num_train_epochs=config.epochs,
        max_length=config.max_length, disable_dropout=config.lora_dropout == 0,
        gradient_accumulation_steps=config.accumulation,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=False, fp16=half, use_cpu=device.type == "cpu",
        logging_steps=1, logging_nan_inf_filter=False, report_to="none", disable_tqdm=True,
        seed=config.seed,
        save_strategy="steps", save_steps=config.save_steps, save_total_limit=1,
        remove_unused_columns=False, dataloader_pin_memory=False, max_grad_norm=1.0, **settings,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one of several, where nobody asked for more
    return arguments


def prepare(config: RunConfig, bundle: Bundle, dataset: Dataset, progress: bool = True,
            cache: Path | None = None) -> Dataset:
    """Encoded pairs with the reference's log-probs, the columns TRL's trainer reads.

    `cache` is a file that keeps the log-probs for the same pairs and the same weights.
    """
    rows = encode_pairs(bundle, dataset, config.max_length)
    chosen, rejected = reference_logprobs(bundle, rows, progress, cache, scoring_batch(config))
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return Dataset.from_dict(columns | {"ref_chosen_logps": chosen.tolist(),
                                        "ref_rejected_logps": rejected.tolist()})


def scoring_batch(config: RunConfig) -> int:
    """Pairs at once where nothing is trained, which needs less memory for each."""
    return min(64, 2 * config.batch_size)


def reference_logprobs(bundle: Bundle, rows: Sequence[dict], progress: bool,
                       cache: Path | None,
                       batch_size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """`score_pairs` under the reference, read from `cache` if its content hash is the same.

    Raises ValueError if it is not and a training beside it has begun, which would go on wrongly.
    """
    key = content_hash(bundle, rows) if cache else ""
    if cache and cache.exists():
        with safe_open(cache, "pt") as stored:
            if stored.metadata().get("content") == key:
                return stored.get_tensor("chosen"), stored.get_tensor("rejected")
        if last_checkpoint(cache.parent):
            raise ValueError(f"{str(cache.parent)!r} holds a run on other pairs or another base "
                             "model; choose another output folder or remove it")
    chosen, rejected = score_pairs(bundle, rows, batch_size,
                                   "reference log-probs" if progress else "")
    if cache:
        models.write_tensors(cache, {"chosen": chosen, "rejected": rejected}, {"content": key})
    return chosen, rejected


def content_hash(bundle: Bundle, rows: Sequence[dict]) -> str:
    """A hash of every weight and every token id that the log-probs depend on."""
    text = json.dumps([models.weights_hash(bundle), list(map(as_pair, rows))])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def build_trainer(config: RunConfig, bundle: Bundle, rows: Dataset, folder: Path, callbacks=()):
    """A trainer over the bundle's base model with a fresh LoRA; `bundle.model` becomes wrapped.

    A `SharedPrefixDPOTrainer`, or TRL's own trainer where prefixes are not to be or cannot be
    shared. Raises ValueError for what TRL's trainers do not know, and for a kto batch of one pair.
    """
    torch.manual_seed(config.seed)  # peft draws LoRA A from torch's generator
    shared, half = config.shared_prefix, bundle.model.dtype == torch.float16
    if config.loss == "kto" and len(rows) % config.batch_size == 1:
        raise ValueError(f"{len(rows)} pairs in batches of {config.batch_size} leave one alone, "
                         "and loss kto compares pairs of a batch; change batch_size or n_pairs")
    if not shared:
        warnings.warn(f"prefixes are not shared; TRL's own trainer computes {config.loss}",
                      stacklevel=2)
    trainer_class, kind, settings = trls_own("dpo" if shared else config.loss, config.beta)
    ours = {"shared": shared, "objective": config.loss, "sft_weight": config.sft_weight}
    trainer = trainer_class(
        bundle.model, args=trainer_arguments(config, folder, bundle.device, kind, half, **settings),
        train_dataset=rows, processing_class=bundle.tokenizer, callbacks=list(callbacks),
        peft_config=models.lora(config.lora_r, config.lora_alpha, config.lora_dropout,
                                config.lora_targets),
        **(ours if trainer_class is SharedPrefixDPOTrainer else {}),
    )
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # TRL casts the LoRA of quantized models to bf16
            parameter.data = parameter.data.float()
    models.keep_gradients(trainer.model)
    bundle.model = trainer.model
    return trainer


def versions() -> dict[str, str]:
    found = {name: version(name) for name in PACKAGES}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def refuse_other_run(config: RunConfig) -> None:
    """Raises ValueError if the output folder holds a run with another configuration."""
    stored = Path(config.output) / "config.yaml"
    if stored.exists() and RunConfig.from_yaml(stored).replace(output=config.output) != config:
        raise ValueError(
            f"{config.output!r} holds a run with another configuration; choose another output "
            "folder or remove it"
        )


def _rounded(values: torch.Tensor) -> list[float]:
    """To a hundredth of a nat, which keeps a log small and a cloud of points the same."""
    return [round(value, 2) for value in values.tolist()]


def last_checkpoint(folder: Path) -> str | None:
    """The run's newest whole checkpoint; one that a kill cut off lacks its state, written last."""
    whole = [path.parent for path in folder.glob("checkpoints/checkpoint-*/trainer_state.json")]
    step = {path: int(path.name.rpartition("-")[2]) for path in whole}
    return str(max(whole, key=step.__getitem__)) if whole else None


def base_model(config: RunConfig) -> Bundle:
    """The model that a run starts from."""
    return models.load(config.model, four_bit=config.four_bit, format=config.format or None)


def training_pairs(config: RunConfig, n: int | None = None, split: str = "train", seed: int = 0,
                   bundle: Bundle | None = None,
                   samples: Sequence[Sample] | None = None) -> Dataset:
    """Preference pairs of a split, made as the config says; `n` overrides their number.

    `bundle` is asked for its own answers if the config says `responses: self`; `samples`, if given,
    are taken as they are.
    """
    if samples is None and config.responses == "self":
        bundle = bundle or base_model(config)
        samples = generation.own_answers(bundle, shipped_samples(split), "own answers")
    return pairs.pairs_dataset(
        shipped_samples(split) if samples is None else samples, seed=config.seed + seed,
        n=config.n_pairs if n is None else n,
        naive=config.naive, position=config.position, clean=config.clean,
    )


def probe_pairs(config: RunConfig, split: str, n: int) -> Dataset:
    """Injected pairs (none clean) of a split that training does not use."""
    return pairs.pairs_dataset(shipped_samples(split), seed=1, n=n, naive=config.naive, split=split)


def train(config: RunConfig, dataset: Dataset, probe: Dataset, bundle: Bundle | None = None,
          on_record=None, progress: bool = True) -> Run:
    """Trains an adapter on the pairs, or goes on from the folder's last checkpoint.

    `config.output` gets `config.yaml`, `pairs/`, `reference.safetensors`, `metrics.jsonl`,
    `versions.json` and `adapter/`.
    `on_record` gets each record of the log as it comes. Raises ValueError if a pair does not fit
    `max_length`, if the folder holds another run, on several processes, and for a loss that is no
    number.
    """
    began, folder = time.perf_counter(), Path(config.output)
    if PartialState().num_processes > 1:
        raise ValueError("a run is one process; start it without accelerate launch or torchrun")
    refuse_other_run(config)
    bundle = bundle or base_model(config)
    probe_rows = encode_pairs(bundle, probe, config.max_length)  # may refuse, before any writing
    rows = prepare(config, bundle, dataset, progress, folder / "reference.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    config.to_yaml(folder / "config.yaml")
    pairs.save_pairs(dataset, folder / "pairs")
    write_json(folder / "versions.json", versions())

    def measure() -> dict:
        chosen, rejected = score_pairs(bundle, probe_rows, scoring_batch(config))
        return {"chosen_logprob": chosen.mean().item(),
                "rejected_logprob": rejected.mean().item(),
                "chosen_logprobs": _rounded(chosen), "rejected_logprobs": _rounded(rejected)}

    batches = -(-len(rows) // config.batch_size)
    steps = config.epochs * -(-batches // config.accumulation)
    log = RunLog(folder / "metrics.jsonl", measure, config.probe_every, steps, on_record,
                 progress)
    trainer = build_trainer(config, bundle, rows, folder, [log])
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    bundle.model = trainer.model.eval()
    bundle.model.save_pretrained(folder / "adapter")
    bundle.adapter = str(folder / "adapter")
    return Run(bundle, log.records, folder, time.perf_counter() - began)

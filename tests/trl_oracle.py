"""TRL's own KTO and SimPO on encoded pairs: what the kit's losses on shared prefixes must equal."""

import os

import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from secalign_kit import models

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns that its API may change


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


def trainer_of(loss: str, config, bundle, rows: Dataset, folder):
    """TRL's trainer for "kto" or "simpo" over the bundle's base model, with a fresh LoRA."""
    if loss == "kto":
        kind, arguments, settings = EncodedKTOTrainer, KTOConfig, {}
    else:
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        kind = type("EncodedCPOTrainer", (CPOTrainer,), {"tokenize_row": encoded_row})
        arguments = CPOConfig
        settings = {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5}
    torch.manual_seed(config.seed)  # for the same LoRA A as in `training.build_trainer`
    responses = 2 if loss == "kto" else 1  # KTO counts responses, the others pairs
    return kind(
        bundle.model, train_dataset=rows, processing_class=bundle.tokenizer,
        args=arguments(
            output_dir=str(folder), beta=config.beta, max_length=config.max_length,
            per_device_train_batch_size=responses * config.batch_size, use_cpu=True, bf16=False,
            gradient_checkpointing=False, disable_dropout=True, remove_unused_columns=False,
            report_to="none", seed=config.seed, **settings),
        peft_config=models.lora(config.lora_r, config.lora_alpha, config.lora_dropout,
                                config.lora_targets))

"""The weights of a run without its adapter: each sum made once, in fp32, of what was trained on.

One datum: `("model.layers.0.mlp.up_proj.weight", [640, 256])`, the dequantized 4-bit weight plus
the LoRA's product.

Limits: LoRA, DoRA of linear layers, and `modules_to_save`; see `adapters`.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import bitsandbytes
import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from .. import fetch, models
from ..models import Bundle
from ..shared_prefix import base_of

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def merged_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and weights of the model as one without an adapter has them, in fp32 on the CPU.

    A weight that stands at two places (a tied head) comes twice.
    """
    inside: tuple[str, ...] = ()  # of a layer that has been dealt with
    for name, module in base_of(model).named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, LoraLayer):
            inside = *inside, f"{name}."
            yield f"{name}.weight", _summed(module, name)
            if (bias := getattr(module.get_base_layer(), "bias", None)) is not None:
                yield f"{name}.bias", plain(bias)
            continue
        if isinstance(module, ModulesToSaveWrapper):
            inside = *inside, f"{name}."
            saved = module.modules_to_save[module.active_adapters[0]].state_dict()
            yield from ((f"{name}.{key}", plain(value)) for key, value in saved.items())
            continue
        kept = {key: value for key, value in module.named_buffers(recurse=False)
                if key not in module._non_persistent_buffers_set}
        for key, value in [*module.named_parameters(recurse=False), *kept.items()]:
            yield f"{name}.{key}" if name else key, plain(value)


def plain(weight: torch.Tensor) -> torch.Tensor:
    """The weight in fp32 on the CPU, dequantized."""
    if (state := getattr(weight, "quant_state", None)) is not None:
        return bitsandbytes.functional.dequantize_4bit(weight.data, state).float().cpu()
    weight = weight.detach().cpu()
    return weight.float() if weight.is_floating_point() else weight


def _summed(layer: LoraLayer, name: str) -> torch.Tensor:
    """A layer's weight and what its adapter adds to it."""
    total = plain(layer.get_base_layer().weight)
    for adapter in layer.active_adapters:
        total = total + layer.get_delta_weight(adapter).detach().float().cpu()
        if adapter in layer.lora_magnitude_vector:  # DoRA, arXiv 2402.09353, equation 5
            if not isinstance(layer.get_base_layer(), nn.Linear):
                raise ValueError(f"{name} has DoRA in a layer that is not linear, and only linear "
                                 "ones are merged; export the adapter with --adapter")
            length = layer.lora_magnitude_vector[adapter].weight.detach().float().cpu()
            total = total * (length / total.norm(dim=1))[:, None]
    return total


def own_head(model) -> bool:
    """Whether an adapter has parted a head from the embedding that it shared with it."""
    base = base_of(model)
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    return any(isinstance(module, (LoraLayer, ModulesToSaveWrapper)) for module in ends)


def save_merged(bundle: Bundle, folder: Path, dtype: str) -> None:
    """Writes configuration and weights of the bundle's model, its adapter added, as safetensors."""
    base = base_of(bundle.model)
    config = copy.deepcopy(base.config)
    for key in ("quantization_config", "_pre_quantization_dtype"):
        vars(config).pop(key, None)
    config.dtype = DTYPES[dtype]
    if own_head(bundle.model):
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    weights = {name: weight.to(DTYPES[dtype]) if weight.is_floating_point() else weight
               for name, weight in merged_weights(bundle.model)}
    if config.tie_word_embeddings:
        head = base.get_output_embeddings()
        weights.pop(next(f"{name}.weight" for name, module in base.named_modules()
                         if module is head))
    with torch.device("meta"):
        empty = type(base)(config).to(DTYPES[dtype])
    if conversions := getattr(base, "_weight_conversions", None):
        empty._weight_conversions = conversions  # names as in the published checkpoint
    empty.generation_config = generation(bundle)
    with fetch.quiet():
        empty.save_pretrained(folder, state_dict=weights)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # as the other files: a server may be another user


def generation(bundle: Bundle):
    """The base's settings for generation, ending where the kit's responses end.

    Without a penalty for repetition, which some models have, and which nothing here was measured
    with.
    """
    settings = copy.deepcopy(base_of(bundle.model).generation_config)
    end = bundle.tokenizer.convert_tokens_to_ids(bundle.format.end)
    before = settings.eos_token_id
    ends = before if isinstance(before, list) else [before] if before is not None else []
    settings.eos_token_id = [end, *(i for i in ends if i != end)] if set(ends) - {end} else end
    settings.pad_token_id = bundle.tokenizer.pad_token_id
    settings.repetition_penalty = None
    return settings


def save_adapter(bundle: Bundle, source: Path, folder: Path, strength: float) -> None:
    """Writes the adapter in peft's form, its strength in `lora_alpha`, which scales it exactly."""
    config = copy.deepcopy(bundle.model.peft_config["default"])
    config.lora_alpha *= strength
    config.alpha_pattern = {key: alpha * strength for key, alpha in config.alpha_pattern.items()}
    config.inference_mode = True
    config.save_pretrained(str(folder))
    weights = (source / models.adapters.WEIGHTS).read_bytes()
    (folder / models.adapters.WEIGHTS).write_bytes(weights)

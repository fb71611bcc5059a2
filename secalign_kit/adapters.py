"""Adapters as they are published: which kinds the kit knows, and whether one fits a base model.

One datum: `read("data/adapters/secalign")` is its `LoraConfig`; `refuse_other_base` says in a
sentence why an adapter is not one of a given model.

A LoRA adapter is one here if the model without it is the base model, bit by bit. Those that change
the base (other biases, PiSSA and the like, new embeddings) would make "insecure" another model.

Limits: LoRA with its rank, rsLoRA, DoRA and `modules_to_save`. Names of models tell a base from
another of the same shapes only where both are Hub ids.
"""

import contextlib
import re
import warnings
from dataclasses import fields
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer

from . import roles
from .chat_format import chat_format

WEIGHTS = "adapter_model.safetensors"
FREE = {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path",
        "revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha",
        "lora_dropout", "fan_in_fan_out", "use_rslora", "use_dora", "modules_to_save",
        "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core",
        "qalora_group_size", "runtime_config", "ensure_weight_tying", "eva_config"}
"""Settings of LoRA with which the model without its adapter is the base model."""
INITIAL = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the base model as it is."""


def find(path: str | Path) -> Path:
    """The folder of an adapter: a folder, a run's, which holds it as `adapter/`, or a Hub id.

    Raises ValueError for others.
    """
    folder = Path(path)
    if not folder.exists() and _hub_id(str(path)):
        try:
            folder = Path(snapshot_download(str(path), allow_patterns=["*.json", "*.jinja",
                                                                       "*.model", WEIGHTS]))
        except (OSError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
            raise ValueError(f"adapter {str(path)!r} is no folder, and not to be had from the "
                             f"Hub: {str(error).splitlines()[0]}") from None
    if (folder / "adapter" / WEIGHTS).exists():
        folder = folder / "adapter"
    if not (folder / WEIGHTS).exists():
        raise ValueError(f"{str(folder)!r} holds no {WEIGHTS}; train one, or fix it")
    return folder


def read(folder: Path) -> LoraConfig:
    """The adapter's configuration. Raises ValueError for a kind that changes the base model."""
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"adapter {str(folder)!r} is of the kind {config.peft_type}; the kit "
                         "knows LoRA")
    if other := _unknown(config):
        raise ValueError(f"adapter {str(folder)!r} has {other}, which the kit cannot switch off "
                         "and scale exactly; train one without it")
    return config


def stages(folder: Path) -> list[str]:
    """The adapters that are merged into the base before this one is put on it, in order."""
    return (read(folder).base_model_name_or_path or "").split("+")[1:]


def own_tokenizer(folder: Path, tokenizer):
    """The tokenizer that comes with an adapter, None if it has none or that of its base.

    Raises ValueError if it has other ids than the base model's `tokenizer` for the same tokens.
    """
    if not (folder / "tokenizer.json").exists():
        return None
    own = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    own.padding_side = tokenizer.padding_side
    theirs, ours = tokenizer.get_vocab(), own.get_vocab()
    added = tokenizer.added_tokens_encoder  # reserved tokens may get new names
    other = [token for token, i in theirs.items()
             if ours.get(token, i if token in added else None) != i]
    if other:
        raise ValueError(f"adapter {str(folder)!r} has another vocabulary than the model: "
                         f"{other[0]!r} and {len(other) - 1} more tokens have other ids; give the "
                         "model that it was trained on")
    same = ours == theirs and own.chat_template == tokenizer.chat_template
    return None if same else own


def layout(folder: Path, tokenizer) -> str:
    """The layout of an adapter's own chat template, a name of `chat_format.CHAT`.

    Raises ValueError for a template that would write an `input` turn as it would one of any role:
    that the data stood in such turns when the adapter was trained can then not be read from it.
    """
    chosen, possible = chat_format(tokenizer).name, None
    with contextlib.suppress(ValueError):
        possible = chat_format(tokenizer, "chat-input").name
    if possible not in (None, chosen):
        raise ValueError(f"the chat template of adapter {str(folder)!r} has turns for any role; "
                         "say format='chat-input' if its data are to stand in input turns, as "
                         f"Meta SecAlign's do, else format={chosen.rpartition('-')[0]!r}")
    return chosen.rpartition("-")[0]


def refuse_other_base(folder: Path, config: LoraConfig, model) -> None:
    """Raises ValueError if names or shapes say that the adapter is not one of this base model."""
    wanted, given = (_hub_name(name) for name in (config.base_model_name_or_path,
                                                  model.config._name_or_path))
    if wanted and given and wanted != given:
        raise ValueError(f"adapter {str(folder)!r} was trained on {config.base_model_name_or_path} "
                         f"and the model is {model.config._name_or_path}; load that one, or, if "
                         "they are the same, load the model from a folder")
    with weights(folder) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
    roles.refuse_other(folder, config, shapes, model)
    for key, shape in shapes.items():
        if not key.endswith(f".{roles.named(config)}.weight"):
            _refuse_shape(folder, config, model, key.removeprefix("base_model.model."), shape)


def weights(folder: Path):
    """The adapter's file of weights, opened. Raises ValueError for a broken one."""
    try:
        return safe_open(folder / WEIGHTS, "pt")
    except SafetensorError as error:
        raise ValueError(f"{str(folder / WEIGHTS)!r} is broken ({error}); fetch it again or train "
                         "the adapter again") from None


def refuse_missing(folder: Path, model) -> None:
    """Raises ValueError unless every LoRA layer of the model has its weights in the folder."""
    with weights(folder) as file:
        held = {key.rpartition(".lora_")[0] for key in file.keys() if ".lora_" in key}
    layers = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if only := sorted(layers ^ held):
        where = "model" if only[0] in layers else "adapter"
        raise ValueError(f"adapter {str(folder)!r} is one of another model: "
                         f"{only[0].removeprefix('base_model.model.')} is in the {where} only")


def warn_of_nothing(folder: Path, model) -> None:
    """Warns of a LoRA whose products are all 0: with it the model is the model without it."""
    kinds = (".lora_B.", ".lora_embedding_B.", ".modules_to_save.")
    changing = [weight for name, weight in model.named_parameters()
                if any(kind in name for kind in kinds)]
    if changing and not any(weight.any() for weight in changing):
        warnings.warn(f"adapter {str(folder)!r} changes nothing: all its products are 0, as before "
                      "a training", stacklevel=3)


def unscalable(config: PeftConfig) -> str:
    """What of an adapter its strength does not scale, "" if nothing."""
    if not isinstance(config, LoraConfig):
        return f"factors of the kind {config.peft_type.value}"
    if config.use_dora:
        return "DoRA's magnitudes"
    return "modules_to_save" if config.modules_to_save else _unknown(config)


def _unknown(config: LoraConfig) -> str:
    """The first setting that would change the base model, "" if there is none."""
    usual = LoraConfig()
    for field in fields(config):
        value = getattr(config, field.name)
        known = (value in INITIAL if field.name == "init_lora_weights"
                 else field.name in FREE or value == getattr(usual, field.name, None))
        if not known:
            return f"{field.name}={value!r}"
    return ""


def _hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and name[0] not in "./"


def _hub_name(name: str | None) -> str:
    """A model's own name in lower case, whoever publishes it; "" for a folder."""
    name = (name or "").partition("+")[0]  # of the stages that are merged into it
    if not _hub_id(name) or Path(name).exists():
        return ""
    return re.sub(r"(-unsloth)?-bnb-4bit$", "", name.lower().rpartition("/")[2])


def _refuse_shape(folder: Path, config: LoraConfig, model, key: str, shape: tuple) -> None:
    name, lora, part = key.rpartition(".lora_")
    if not lora:
        name, _, part = key.rpartition(".")
        if not any(name.endswith(saved) for saved in config.modules_to_save or ()):
            raise ValueError(f"adapter {str(folder)!r} brings a {key} in place of the model's, so "
                             "that the model without the adapter would not be the base model")
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"adapter {str(folder)!r} is one of another model: this one has no "
                         f"{name}") from None
    size = _size(module)
    wrong = {"A.weight": shape[1:] != size[:1], "B.weight": shape[:1] != size[1:],
             "embedding_A": shape[1:] != size[:1], "embedding_B": shape[:1] != size[1:],
             "weight": shape != size[::-1] and shape != size}
    if size and wrong.get(part, False):
        raise ValueError(f"adapter {str(folder)!r} is one of another model: its {key} has the "
                         f"shape {list(shape)}, the model's {name} takes {size[0]} numbers and "
                         f"gives {size[1]}")


def _size(module: nn.Module) -> tuple[int, ...]:
    """(numbers in, numbers out), () if the module does not say."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    return tuple(module.weight.shape) if hasattr(module, "nf") else ()

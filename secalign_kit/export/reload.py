"""A process that knows transformers and nothing of the kit reads an exported folder.

`python reload.py FOLDER ASKED.json ANSWERED.json`: conversations with two answers each go in, their
tokens, log-probs and greedy responses come out, and what each layer makes of random numbers. All
products are in fp32, whatever the weights are stored in, so that only the weights count. Nothing of
the kit may be imported here.
"""

import json
import sys
import zlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

BATCH = 16
PROBES = 16  # random inputs of a layer, and sums of what comes out of each


def load(folder, asked, device):
    """Tokenizer, model, and the model without peft's wrapper; an adapter stands on its base."""
    options = dict(dtype=torch.float32, device_map={"": device}, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not asked["base"]:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False,
                                                     **options).eval()
        return tokenizer, model, model
    from peft import PeftModel

    if asked["four_bit"]:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(asked["base"], trust_remote_code=False, **options)
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # a CPU's kernel that multiplies in bf16
            module.support_avx512bf16_for_cpu = False
    model = PeftModel.from_pretrained(base, folder).eval()
    return tokenizer, model, model.get_base_model()


def room(folder):
    """Whether a GPU's free memory holds the folder's weights in fp32, with some to spare."""
    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return torch.cuda.mem_get_info()[0] > 2.5 * size


def written(tokenizer, turns, **options):
    return tokenizer.apply_chat_template(turns, return_dict=False, **options)


@torch.inference_mode()
def logprobs(model, ids, start):
    """Log p in nats of each token from `start` on."""
    logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, start - 1 : -1]
    found = logits.float().log_softmax(-1)
    return found.gather(1, torch.tensor(ids[start:], device=model.device)[:, None])[:, 0].tolist()


@torch.inference_mode()
def sketches(model):
    """What every linear layer and embedding makes of random inputs, in some hundred numbers each.

    Two matrices that differ by a share of their size, counted over all elements, give numbers that
    differ by about that share. A layer with an adapter is asked as one, adapter included.
    """
    found, inside = {}, ()
    for name, layer in model.named_modules():
        if inside and name.startswith(inside):
            continue
        own = (layer.get_base_layer() if hasattr(layer, "get_base_layer")
               else getattr(layer, "original_module", layer))  # peft's modules_to_save
        if isinstance(own, (torch.nn.Linear, torch.nn.Embedding, Conv1D)):
            inside = *inside, f"{name}."
            found[name] = sketch(layer, own, zlib.crc32(name.encode()))
    return found


def sketch(layer, own, seed):
    drawn = torch.Generator().manual_seed(seed)
    if isinstance(own, torch.nn.Embedding):
        ids = torch.randint(own.num_embeddings, (PROBES,), generator=drawn)
        out = layer(ids.to(own.weight.device))
    else:
        width = own.weight.shape[0] if isinstance(own, Conv1D) else own.in_features
        inputs = torch.randn(PROBES, width, generator=drawn).to(own.weight.device)
        out = layer(inputs) - layer(torch.zeros_like(inputs))  # without its bias
    out = out.float().cpu()
    return (out @ torch.randn(out.shape[1], PROBES, generator=drawn)).flatten().tolist()


@torch.inference_mode()
def responses(model, tokenizer, prompts, limit):
    """Greedy texts and ids, ended by what the folder's own generation settings say."""
    ends = model.generation_config.eos_token_id
    ends = {*ends} if isinstance(ends, list) else {ends}
    order, found = sorted(range(len(prompts)), key=lambda k: len(prompts[k])), {}
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        width = max(len(prompts[k]) for k in part)
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompts[k])) + prompts[k] for k in part])
        mask = torch.tensor([[0] * (width - len(prompts[k])) + [1] * len(prompts[k])
                             for k in part])
        out = model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
                             max_new_tokens=limit, do_sample=False, temperature=None, top_p=None,
                             top_k=None, pad_token_id=pad)
        for k, row in zip(part, out[:, width:].tolist(), strict=True):
            length = next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
            found[k] = (tokenizer.decode(row, skip_special_tokens=True).strip(), row[:length])
    return [found[k] for k in range(len(prompts))]


def main(folder, source, target):
    with open(source, encoding="utf-8") as file:
        asked = json.load(file)
    device = "cuda" if asked["cuda"] and torch.cuda.is_available() and room(folder) else "cpu"
    tokenizer, model, base = load(folder, asked, device)
    prompts, answers, scores = [], [], []
    for turns, texts in zip(asked["turns"], asked["answers"], strict=True):
        prompt = written(tokenizer, turns, add_generation_prompt=True)
        whole = [written(tokenizer, [*turns, {"role": "assistant", "content": text}])
                 for text in texts]
        prompts.append(prompt)
        answers.append([ids[len(prompt):] for ids in whole])
        scores.append([logprobs(model, ids, len(prompt)) for ids in whole])
    said = responses(model, tokenizer, prompts, asked["max_new_tokens"])
    found = {"prompts": prompts, "answers": answers, "logprobs": scores, "layers": sketches(base),
             "responses": [text for text, _ in said], "ids": [ids for _, ids in said],
             "kit": any(name.partition(".")[0] == "secalign_kit" for name in sys.modules)}
    with open(target, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    main(*sys.argv[1:])

"""A process that knows transformers and nothing of the kit reads an exported folder.

`python reload.py FOLDER ASKED.json ANSWERED.json`: conversations with two answers each go in, their
tokens, log-probs and greedy responses come out. Nothing of the kit may be imported here.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging

BATCH = 16


def load(folder, asked, device):
    """Tokenizer and model; an adapter stands on the base and in the precision that it was given."""
    dtype = "auto" if device == "cuda" else torch.float32  # a CPU multiplies stored weights in fp32
    options = dict(dtype=dtype, device_map={"": device}, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not asked["base"]:
        return tokenizer, AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    from peft import PeftModel

    if asked["four_bit"]:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(asked["base"], **options)
    return tokenizer, PeftModel.from_pretrained(base, folder).eval()


def written(tokenizer, turns, **options):
    return tokenizer.apply_chat_template(turns, return_dict=False, **options)


@torch.inference_mode()
def logprobs(model, ids, start):
    """Log p in nats of each token from `start` on."""
    logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, start - 1 : -1]
    found = logits.float().log_softmax(-1)
    return found.gather(1, torch.tensor(ids[start:], device=model.device)[:, None])[:, 0].tolist()


@torch.inference_mode()
def responses(model, tokenizer, prompts, limit):
    """Greedy texts, ended by what the folder's own generation settings say."""
    order, texts = sorted(range(len(prompts)), key=lambda k: len(prompts[k])), {}
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
            texts[k] = tokenizer.decode(row, skip_special_tokens=True).strip()
    return [texts[k] for k in range(len(prompts))]


def main(folder, source, target):
    with open(source, encoding="utf-8") as file:
        asked = json.load(file)
    device = "cuda" if asked["cuda"] and torch.cuda.is_available() else "cpu"
    tokenizer, model = load(folder, asked, device)
    prompts, answers, scores = [], [], []
    for turns, texts in zip(asked["turns"], asked["answers"], strict=True):
        prompt = written(tokenizer, turns, add_generation_prompt=True)
        whole = [written(tokenizer, [*turns, {"role": "assistant", "content": text}])
                 for text in texts]
        prompts.append(prompt)
        answers.append([ids[len(prompt):] for ids in whole])
        scores.append([logprobs(model, ids, len(prompt)) for ids in whole])
    found = {"prompts": prompts, "answers": answers, "logprobs": scores,
             "responses": responses(model, tokenizer, prompts, asked["max_new_tokens"]),
             "kit": any(name.partition(".")[0] == "secalign_kit" for name in sys.modules)}
    with open(target, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    main(*sys.argv[1:])

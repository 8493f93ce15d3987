"""Writes `gpt2`: a small language model as transformers stores it, and what transformers makes of prompts.

Needs `pip install torch==2.13.0 transformers==5.24.0`, in an environment apart. The weights are random, and
large enough that the likeliest token depends on all that came before it.
"""

import shutil
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
VOCABULARY = 300
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A model draws one token after another until it is done.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "It's 5 o'clock; the 2 trains won't wait, we'll walk.",
]
PROMPTS = ["The quick", "A", "Zwölf Boxkämpfer, it's", "the lazy dog. The lazy dog."]
NEW_TOKENS = 16
SEED = 37  # of weights with which some rows end before they must

directory = Path(__file__).with_name("gpt2")
shutil.rmtree(directory, ignore_errors=True)

tokenizer = tokenizers.Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY,
    special_tokens=[END],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
tokenizer.train_from_iterator(SENTENCES, trainer)
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, unk_token=END)
end = fast.eos_token_id

torch.manual_seed(SEED)
config = GPT2Config(
    vocab_size=len(fast),
    n_positions=48,
    n_embd=16,
    n_layer=2,
    n_head=2,
    initializer_range=0.5,
    bos_token_id=end,
    eos_token_id=end,
)
model = GPT2LMHeadModel(config).eval()
with torch.no_grad():
    for weight in model.parameters():
        if weight.ndim == 1:  # biases and normalisations, which begin as zeros and ones
            weight += 0.3 * torch.randn_like(weight)
model.generation_config.pad_token_id = end
model.save_pretrained(directory)
fast.save_pretrained(directory)

arrays = {}
for i, prompt in enumerate(PROMPTS):
    tokens = fast(prompt, return_tensors="pt")
    with torch.no_grad():
        arrays[f"logits_{i}"] = model(**tokens).logits[0].numpy()
        for name, how in {
            "greedy": {},
            "penalty": {"repetition_penalty": 1.7},
        }.items():
            made = model.generate(**tokens, do_sample=False, max_new_tokens=NEW_TOKENS, **how)
            arrays[f"{name}_{i}"] = made[0].numpy().astype(np.int32)
    arrays[f"prompt_{i}"] = tokens["input_ids"][0].numpy().astype(np.int32)
    arrays[f"text_{i}"] = np.array(fast.decode(arrays[f"greedy_{i}"], skip_special_tokens=True))
    print(
        prompt, "->", repr(str(arrays[f"text_{i}"])), len(arrays[f"greedy_{i}"]) - len(arrays[f"prompt_{i}"])
    )
np.savez(directory / "generated.npz", prompts=np.array(PROMPTS), new_tokens=NEW_TOKENS, **arrays)

"""Times a training step in PyTorch on the shape of `cargo bench --bench training`, beside it.

setup:  python3 -m venv peers-venv && peers-venv/bin/pip install torch transformers
usage:  peers-venv/bin/python train_torch.py [THREADS] [eager|compiled]

Grouped-query Llama of 3.9M parameters, 16 rows of 512 tokens, cross-entropy, clipping, AdamW. Prints a JSON line: seconds
of each of eight steps after two that do not count, and tokens per second of the median.
"""
import json, statistics, sys, time, torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
mode = sys.argv[2] if len(sys.argv) > 2 else "eager"
torch.manual_seed(1)
rows, length, vocabulary = 16, 512, 4096
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=vocabulary, hidden_size=192, intermediate_size=512, num_hidden_layers=8, num_attention_heads=6,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True, rms_norm_eps=1e-5))
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)


def objective(x):
    return F.cross_entropy(model(x[:, :-1], use_cache=False).logits.reshape(-1, vocabulary), x[:, 1:].reshape(-1))


if mode == "compiled":
    objective = torch.compile(objective, dynamic=False)
seconds = []
for step in range(10):
    x = torch.randint(vocabulary, (rows, length + 1))
    begin = time.perf_counter()
    loss = objective(x)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    seconds.append(round(time.perf_counter() - begin, 4))
median = statistics.median(seconds[2:])
print(json.dumps(dict(mode=mode, threads=torch.get_num_threads(), seconds=seconds[2:], tok_s=round(rows * length / median))))

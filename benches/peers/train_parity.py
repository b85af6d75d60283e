"""Writes what PyTorch trained on, so that our trainer can learn the same: the rows of its run in their order, and its weights
before the first step. Then compares the two logs at equal tokens.

The peer is a script that trains a Llama of 3.9M parameters on novels and generated retrieval documents; its generator of rows is
run here unchanged, by name, from its own file.

usage:  python train_parity.py rows PEER_SCRIPT DATA_DIR OUT_DIR STEPS
        python train_parity.py compare PEER_LOG OUR_LOG
"""
import json, os, sys


def rows(script, data, out, steps):
    import torch
    from safetensors.torch import save_file

    source = open(script, encoding="utf-8").read()
    # Everything up to the model's optimiser: texts, tokenizer, generator of rows, model with its first weights.
    head, tail = source.split("decay = [", 1)
    row = tail[tail.index("rng = random.Random(3)") : tail.index("def held_bpb")]
    os.makedirs(out, exist_ok=True)
    sys.argv = [script, data, out, "0"]
    space = {}
    exec(compile(head, script, "exec"), space)
    exec(compile(row, script, "exec"), space)
    space["m"].save_pretrained(out)
    batch = space["B"]
    # The peer draws one batch before its clock starts.
    for _ in range(batch):
        space["row"]()
    ids = torch.stack([space["row"]().long() for _ in range(batch * steps)])
    save_file({"input_ids": ids.to(torch.int32)}, f"{out}/rows.safetensors")
    print(f"{ids.shape[0]} rows of {ids.shape[1]} tokens")


def compare(peer, ours):
    theirs = {d["step"]: d for d in map(json.loads, open(peer))}
    mean, found = None, {}
    for line in map(json.loads, open(ours)):
        mean = line["loss"] if mean is None else 0.95 * mean + 0.05 * line["loss"]
        found[line["step"]] = mean
    worst = 0.0
    print("| tokens | PyTorch | Kindling | difference |\n| ---: | ---: | ---: | ---: |")
    shared = [step for step in theirs if step in found]
    for step in shared:
        difference = found[step] / theirs[step]["loss"] - 1
        worst = max(worst, abs(difference))
        if step % 100 == 0 or step == shared[0] or step == shared[-1]:
            tokens = theirs[step]["tokens"]
            print(f"| {tokens} | {theirs[step]['loss']:.4f} | {found[step]:.4f} | {100 * difference:+.2f} % |")
    print(f"\nlargest difference over {len(shared)} points: {100 * worst:.2f} %")


if __name__ == "__main__":
    if len(sys.argv) == 6 and sys.argv[1] == "rows":
        rows(*sys.argv[2:5], int(sys.argv[5]))
    elif len(sys.argv) == 4 and sys.argv[1] == "compare":
        compare(*sys.argv[2:])
    else:
        sys.exit(__doc__)

"""Rate of PyTorch's f32 products, as a linear layer of a prompt makes them: what a dense prefill is measured against.

    python benches/peers/linear_torch.py [--threads 2] [--repeats 15] [--json]
"""

import argparse
import json
import statistics
import time

import torch

SHAPES = [(512, 2048, 2048), (512, 2048, 8192), (512, 8192, 2048)]


def rates(rows, inputs, outputs, repeats):
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    torch.nn.functional.linear(x, weight)
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        found.append(2e-9 * rows * inputs * outputs / (time.perf_counter() - start))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = []
    for shape in SHAPES:
        found = rates(*shape, args.repeats)
        lines.append({"rows, inputs, outputs": shape, "median": statistics.median(found), "best": max(found)})
    if args.json:
        print(json.dumps({"torch": torch.__version__, "threads": args.threads, "gflop_s": lines}, indent=2))
        return
    for line in lines:
        print(f"{line['rows, inputs, outputs']}: median {line['median']:.0f}, best {line['best']:.0f} GFLOP/s")


if __name__ == "__main__":
    main()

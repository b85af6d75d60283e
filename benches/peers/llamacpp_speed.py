#!/usr/bin/env python3
"""Speed of llama.cpp on random weights of the shape of a config.json: what `xtask bench decode|prefill --peer` runs.

Needs Python with the packages numpy, gguf and llama-cpp-python, the last one compiled for this processor:
    CMAKE_ARGS=-DGGML_NATIVE=ON pip install numpy gguf llama-cpp-python
Prints one JSON object: {"tok_s": [one rate per repeat]}.
"""
import argparse
import json
import pathlib
import time

import gguf
import numpy
from llama_cpp import Llama

QUANTS = {"q4": gguf.GGMLQuantizationType.Q4_0, "q8": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"q4": gguf.LlamaFileType.MOSTLY_Q4_0, "q8": gguf.LlamaFileType.MOSTLY_Q8_0}


def write_model(path, config, name):
    """A GGUF file in which every matrix is quantised; one random matrix per shape serves all blocks."""
    quant = QUANTS[name]
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    vocabulary = config["vocab_size"]
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_context_length(16384)
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(int(FILE_TYPES[name]))
    # The smallest vocabulary that the loader accepts.
    special = [b"<unk>", b"<s>", b"</s>"]
    in_bytes = [b"<0x%02X>" % i for i in range(256)]
    words = [b"w%d" % i for i in range(vocabulary - len(special) - len(in_bytes))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(special + in_bytes + words)
    writer.add_token_scores([0.0] * (len(special) + len(in_bytes)) + [-1.0 - i for i in range(len(words))])
    writer.add_token_types([2, 3, 3] + [6] * len(in_bytes) + [1] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    random = numpy.random.default_rng(0)
    made = {}

    def matrix(name, rows, columns):
        if (rows, columns) not in made:
            values = random.standard_normal((rows, columns), dtype=numpy.float32) / numpy.sqrt(columns)
            made[rows, columns] = gguf.quants.quantize(values, quant)
        writer.add_tensor(name, made[rows, columns], raw_dtype=quant)

    def ones(name):
        writer.add_tensor(name, numpy.ones(hidden, numpy.float32))

    matrix("token_embd.weight", vocabulary, hidden)
    matrix("output.weight", vocabulary, hidden)
    ones("output_norm.weight")
    for i in range(config["num_hidden_layers"]):
        shapes = {
            "attn_q": (heads * width, hidden),
            "attn_k": (kv_heads * width, hidden),
            "attn_v": (kv_heads * width, hidden),
            "attn_output": (hidden, heads * width),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }
        for part_name, shape in shapes.items():
            matrix(f"blk.{i}.{part_name}.weight", *shape)
        ones(f"blk.{i}.attn_norm.weight")
        ones(f"blk.{i}.ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=pathlib.Path, required=True)
    parser.add_argument("--format", choices=QUANTS, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, help="measure reading so many tokens")
    parser.add_argument("--context", type=int, help="measure writing after so many tokens")
    parser.add_argument("--new", type=int, default=48)
    args = parser.parse_args()
    config = json.loads(args.config.read_text())
    path = args.config.parent / f"llamacpp-{args.format}.gguf"
    if not path.exists():
        write_model(path, config, args.format)
    length = args.tokens or args.context
    model = Llama(
        str(path),
        n_ctx=length + args.new + 64,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        n_batch=512,
        verbose=False,
    )
    prompt = [(300 + 7 * i) % config["vocab_size"] for i in range(length)]
    rates = []
    for repeat in range(args.repeats + 1):
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        if not args.tokens:
            start = time.perf_counter()
            for i in range(args.new):
                model.eval([1000 + i])
        if repeat:
            rates.append((args.tokens or args.new) / (time.perf_counter() - start))
    print(json.dumps({"tok_s": rates}))


if __name__ == "__main__":
    main()

"""Host forward against transformers, on the same random shapes: 8 x 256 tokens, stopped at a mid-model block, f32.

    python benches/peers/host_forward.py target/release/examples/random_host gpt2     (or pythia-70m)  [--threads 2] [--rounds 5]

`--written` folders are made once by the example. Rounds alternate between the two, so that a busy machine slows both; the table has
medians of wall time and of processor time per token, and their ratios. transformers is given a model of just the blocks that are
needed, so it stops at the same layer; its final norm over [8, 256, d] is the only extra work.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

SHAPES = {
    "gpt2": dict(family="gpt2", layers=12, d=768, heads=12, vocab=50257, context=1024),
    "pythia-70m": dict(family="gpt_neox", layers=6, d=512, heads=8, vocab=50304, context=2048),
}
BATCH, TOKENS = 8, 256


def ours(example, shape, layer, folder, threads, fresh):
    flags = [f for name, value in shape.items() for f in (f"--{name}", str(value))]
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    if fresh:
        subprocess.run([example, *flags, "--out", folder], check=True, env=environment, stdout=subprocess.DEVNULL)
    bench = ["--written", "--bench", str(BATCH), str(TOKENS), str(layer)]
    run = subprocess.run([example, *flags, "--out", folder, *bench], check=True, env=environment, capture_output=True, text=True).stdout
    wall = float(re.search(r"median ([\d.]+) s", run)[1])
    cpu = float(re.search(r"processor time (\d+) us", run)[1])
    return wall, cpu


def theirs(shape, layer, threads):
    """Runs in a process of its own, so that each round starts alike."""
    import torch
    import transformers as t

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    d, n, heads = shape["d"], layer + 1, shape["heads"]
    if shape["family"] == "gpt2":
        model = t.GPT2Model(t.GPT2Config(vocab_size=shape["vocab"], n_embd=d, n_layer=n, n_head=heads))
    else:
        sizes = dict(hidden_size=d, intermediate_size=4 * d, num_hidden_layers=n, num_attention_heads=heads)
        model = t.GPTNeoXModel(t.GPTNeoXConfig(vocab_size=shape["vocab"], **sizes))
    model.eval()
    ids = torch.randint(0, shape["vocab"], (BATCH, TOKENS))
    walls = []
    with torch.inference_mode():
        model(ids, use_cache=False)
        cpu = time.process_time()
        for _ in range(5):
            start = time.perf_counter()
            model(ids, use_cache=False)
            walls.append(time.perf_counter() - start)
        cpu = time.process_time() - cpu
    print(json.dumps([statistics.median(walls), 1e6 * cpu / (5 * BATCH * TOKENS)]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("example")
    parser.add_argument("model", choices=SHAPES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--theirs", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.model]
    layer = shape["layers"] // 2
    if arguments.theirs:
        return theirs(shape, layer, arguments.threads)
    rounds = {"lapidary": [], "transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.rounds):
            rounds["lapidary"].append(ours(arguments.example, shape, layer, folder, arguments.threads, i == 0))
            command = [sys.executable, __file__, arguments.example, arguments.model, "--threads", str(arguments.threads), "--theirs"]
            rounds["transformers"].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    n = BATCH * TOKENS
    for name, values in rounds.items():
        walls, cpus = zip(*values)
        wall, cpu = statistics.median(walls), statistics.median(cpus)
        print(f"{name:13} {n / wall:8.0f} tokens/s  {cpu:7.0f} us of processor per token")
    ratios = [[b / a for a, b in zip(*pair)] for pair in zip(rounds["lapidary"], rounds["transformers"])]
    print(f"{'ratio':13} {statistics.median(r[0] for r in ratios):8.2f} x the speed  {statistics.median(r[1] for r in ratios):6.2f} x less processor time")


if __name__ == "__main__":
    main()

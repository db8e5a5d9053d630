"""Exports of small trained dictionaries, loaded by the libraries that they are for: codes must be ours to 1e-5, without a warning.

    pip install sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0 overcomplete==0.3.0 gguf==0.19.0 pyarrow
    python tests/interop/run.py path/to/lapidary [check ...]

Checks: saelens saelens_reads scopes sparsify dictionary_learning overcomplete openai chain consumers saebench. SAEBench wants old versions of much:
    pip install --no-deps sae-bench==0.6.0
and is skipped, with a line that says so, where it is not there.
"""

import argparse
import importlib
import os
import pathlib
import sys
import tempfile
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import common  # noqa: E402

CHECKS = ["saelens", "saelens_reads", "scopes", "sparsify", "dictionary_learning", "overcomplete", "openai", "chain", "consumers", "saebench"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lapidary")
    parser.add_argument("checks", nargs="*", default=CHECKS)
    parser.add_argument("--work", help="keep what is made here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        lapidary = common.Lapidary(args.lapidary, args.work or temporary)
        x = lapidary.rows()
        dictionaries = {
            "topk": lapidary.train("topk", "--arch", "topk", "--k", 4),
            "batch-topk": lapidary.train("batch-topk", "--arch", "batch-topk", "--k", 4),
            "matryoshka": lapidary.train("matryoshka", "--arch", "matryoshka", "--k", 4, "--set", "sae.prefixes=[16,32,64]"),
            "mp": lapidary.train("mp", "--arch", "mp", "--k", 4),
            "jump-relu": lapidary.train("jump-relu", "--arch", "jump-relu"),
            "gated": lapidary.train("gated", "--arch", "gated"),
            "relu": lapidary.train("relu", "--arch", "relu"),
        }
        for name in args.checks:
            if name not in CHECKS:
                sys.exit(f"there is no check {name}: choose from {', '.join(CHECKS)}")
            print(f"== {name}")
            module = importlib.import_module(f"check_{name}")
            with warnings.catch_warnings():
                # Of the libraries' own imports nothing is said here; loading our files must not warn (each check sees to it).
                module.run(lapidary, x, dictionaries)
    for line in common.skipped:
        print("skipped:", line)
    print("all interop checks passed")


if __name__ == "__main__":
    main()

"""``python -m tests.differential 17``: print program 17 and judge it; ``--many 0 1000 --out FILE``: judge many."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from .grammar import generate
from .judge import judge


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--many", type=int, nargs=2, metavar=("FIRST", "LAST"))
    parser.add_argument("--compile", help="this tier for all programs")
    parser.add_argument("--shrink", action="store_true", help="find the least features that fail")
    parser.add_argument("--isolate", action="store_true", help="leave one suspect at a time in a program that fails")
    parser.add_argument("--out", type=Path, help="a JSON line for each program")
    options = parser.parse_args()
    torch.set_num_threads(1)
    changed = {"compile": options.compile} if options.compile else {}
    if options.seed is not None:
        print(generate(options.seed))
    for seed in range(*options.many) if options.many else [options.seed]:
        begun = time.perf_counter()
        line = asdict(judge(seed, why=not options.many, shrink=options.shrink, isolate=options.isolate, **changed)) | {
            "seconds": round(time.perf_counter() - begun, 2)
        }
        text = json.dumps(line, ensure_ascii=False)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        else:
            print(text, flush=True)


if __name__ == "__main__":
    main()

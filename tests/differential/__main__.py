"""``python -m tests.differential 17``: print program 17 and judge it; ``--many 0 1000 --out FILE``:
judge many; ``--page SWEEP --isolated FILE --at COMMIT``: write docs/differential.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from tests.differential.grammar import generate
from tests.differential.judge import FAILURES, judge
from tests.differential.page import page, read

DOCS = Path(__file__).parents[2] / "docs" / "differential.md"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--many", type=int, nargs=2, metavar=("FIRST", "LAST"))
    parser.add_argument("--compile", help="this tier for all programs")
    parser.add_argument("--shrink", action="store_true", help="find the least features that fail")
    parser.add_argument(
        "--isolate", action="store_true", help="leave one suspect at a time in a program that fails"
    )
    parser.add_argument(
        "--failing", type=Path, help="of those, the programs alone that failed in this file"
    )
    parser.add_argument(
        "--page",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="write docs/differential.md of these sweeps",
    )
    parser.add_argument(
        "--isolated",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="with --page: those isolated",
    )
    parser.add_argument("--at", default="this commit")
    parser.add_argument("--out", type=Path, help="a JSON line for each program")
    options = parser.parse_args()
    if options.page:
        DOCS.write_text(
            page(read(options.page), read(options.isolated), options.at), encoding="utf-8"
        )
        return
    torch.set_num_threads(1)
    changed = {"compile": options.compile} if options.compile else {}
    if options.seed is not None:
        print(generate(options.seed))
    seeds = range(*options.many) if options.many else [options.seed]
    if options.failing:
        failed = {line["seed"] for line in read([options.failing]) if line["verdict"] in FAILURES}
        seeds = [seed for seed in seeds if seed in failed]
    for seed in seeds:
        begun = time.perf_counter()
        line = asdict(
            judge(
                seed,
                why=not options.many,
                shrink=options.shrink,
                isolate=options.isolate,
                **changed,
            )
        ) | {"seconds": round(time.perf_counter() - begun, 2)}
        text = json.dumps(line, ensure_ascii=False)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        else:
            print(text, flush=True)


if __name__ == "__main__":
    main()

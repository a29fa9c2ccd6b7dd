"""The page of a sweep's figures: how many programs are equal, refused in which sentence, different
by which feature.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HEAD = """\
# Random programs against stock Pyro

`tests/differential/` writes small random Pyro pairs as source text, each from its seed (`grammar.py`: latents and observed
sites in several spellings, plates, masks, scales, decoders whose gradients have another memory layout than their
parameter, frozen parts, branches, Python state that moves, strides, dtypes). `oracle.py` trains each with stock Pyro and
torch alone (`ELBO.differentiable_loss / B`, `.backward()`, `clip_grad_norm_`, torch's optimiser unfused; the same rows and
noise, float64) and finds log p(x) of one image by quadrature, by summing over all values, or by plain draws. `judge.py`
does the same with `pv.fit` and `pv.log_marginal`. A program is *equal* where parameters, buffers, losses and ELBOs agree
to 1e-6 after the whole training (50 steps or more) and log p(x) within 5 standard errors; *refused* where a `UserError`
says why; *different*, or a *traceback*, else.

```sh
python -m tests.differential 17
pytest tests/differential -m "not slow"  # quick: --collect-only -q
python -m tests.differential --many 0 1000 --out sweep.json  # quick: --many 0 2
```

The first prints program 17, judges it and says what a difference is due to. The second judges 23 programs (all tests: 115,
`-m stress`: the rest of 1000). The third writes a line of JSON for each program; `--page sweep.json --at COMMIT` makes this
page of them.

Python state that moves (an annealed attribute, a counter) is tried in the tiers `auto` and `off`: under `graph` and
`inductor` it is the user's word that there is none. Where k̂ > 0.7 a number that is too low is held against as few draws in
Pyro's own hands. A pair that stock Pyro itself can't train is counted apart.
"""


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of these files, by seed; a later line of a seed is the one that counts."""
    lines = (
        json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()
    )
    return [line for _, line in sorted({line["seed"]: line for line in lines}.items())]


def page(sweep: Sequence[dict[str, Any]], isolated: Sequence[dict[str, Any]], at: str) -> str:
    """The page's text."""
    verdicts = Counter(line["verdict"] for line in sweep)
    trained = len(sweep) - verdicts["untrainable"]
    parts = [HEAD, f"## Measured at {at}: {_range(sweep)}", ""]
    parts += ["| verdict | programs |", "|---|---|"]
    parts += [
        f"| {name} | {verdicts[name]} |"
        for name in ("equal", "refused", "different", "traceback", "untrainable")
    ]
    share = 100 * verdicts["refused"] / max(trained, 1)
    parts += ["", f"Refused: {share:.1f}% of the {trained} that stock Pyro trains.", ""]
    scores = Counter(
        _plain(each) for line in sweep if not line["no_log_px"] for each in line["refused_scores"]
    )
    refused = Counter(_plain(line["what"]) for line in sweep if line["verdict"] == "refused")
    for title, counted in (
        ("A training is refused", refused),
        ("log p(x) is refused though there is one", scores),
    ):
        parts += [f"| programs | {title} |", "|---|---|"]
        parts += [f"| {number} | {sentence} |" for sentence, number in counted.most_common()]
        parts += [""]
    kinds: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for line in isolated:
        for suspect, what in line["kinds"].items():
            if not what.startswith("refused"):
                kinds[suspect or "(none of the suspects)"].append((line["seed"], what))
    if kinds:
        parts += ["## Which feature is different by itself", ""]
        parts += [
            "Programs with this one of all suspects; beside it, those of the sweep that have it "
            "among others.",
            "",
        ]
        parts += [
            "| feature | seeds | the first one's figure | in the sweep | of these failing | "
            "refused |"
        ]
        parts += ["|---|---|---|---|---|---|"]
        for suspect, found in sorted(kinds.items(), key=lambda item: item[1][0]):
            seeds = ", ".join(str(seed) for seed, _ in found[:6])
            those = [line["verdict"] for line in sweep if suspect in line["tags"]]
            failing = sum(verdict in ("different", "traceback") for verdict in those)
            counts = f"{len(those)} | {failing} | {those.count('refused')}"
            parts += [f"| {suspect} | {seeds} | {_cell(found[0][1])} | {counts} |"]
        parts += [""]
    return "\n".join(parts)


def _range(lines: Sequence[dict[str, Any]]) -> str:
    return f"{len(lines)} programs, seeds {lines[0]['seed']} to {lines[-1]['seed']}"


def _plain(sentence: str) -> str:
    """The sentence without this program's names and numbers."""
    return _cell(re.sub(r"\d[\d.e+-]*", "#", re.sub(r"(z|x_)\d", r"\1#", sentence)))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

"""From run folders to a table: figures, verdicts against the published values, paired differences;
as JSON and as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import Any

import pyro_vae as pv
from benchmarks.reproduce.budget import FULL, Budget
from benchmarks.reproduce.cells import Cell, row_estimate
from benchmarks.reproduce.tables import Published, Row, Table
from pyro_vae.errors import UserError
from pyro_vae.evaluation.result import LogMarginal
from pyro_vae.files import write_atomically
from pyro_vae.runs.config_file import plain
from pyro_vae.runs.run import finite

FIGURES = ("mean", "se_mc", "se_total", "bias", "elbo", "high_khat")
CERTAIN = 2.0
"""Standard errors of a paired difference from which an order holds."""


def verdict(mean: float, published: Published | None, full: bool) -> dict[str, Any]:
    """The miss, and whether it is within the tolerance; no verdict where the training is not the
    published one.
    """
    if published is None:
        return {"passed": None, "why": "no published value"}
    found = {
        "published": published.value,
        "tolerance": published.tolerance,
        "miss": mean - published.value,
        **({"note": published.note} if published.note else {}),
    }
    if not full:
        return {
            **found,
            "passed": None,
            "why": "trained for a stated budget, not for the published schedule",
        }
    passed = isfinite(mean) and abs(mean - published.value) <= published.tolerance
    return {**found, "passed": passed, "why": "" if passed else "outside the tolerance"}


def row(line: Row, cell: Cell, budget: Budget, why: str = "") -> dict[str, Any]:
    """All that is known of one line; ``why`` is the reason why its cell failed."""
    found: dict[str, Any] = {"name": line.name, "cell": line.cell, "steps_published": cell.whole}
    if not cell.trained:
        state = "in progress" if cell.begun else "not run"
        done = (cell.run.rows() or [{}])[-1].get("step", 0) if cell.begun else 0
        return {
            **found,
            "state": state,
            "steps": done,
            "steps_wanted": cell.steps,
            **({"why": why} if why else {}),
        }
    results, environment = (
        cell.run.results(),
        json.loads(cell.run.environment_file.read_text(encoding="utf-8")),
    )
    training = results["training"]
    found |= {
        "state": "done",
        "steps": training["steps"],
        "epochs": training["epochs"],
        "schedule": "published"
        if budget.full
        else f"shortened to {training['steps']} of {cell.whole} steps",
        "seed": cell.options.seed,
        "seconds": training["seconds"],
        "hardware": _hardware(environment, cell.record.get("machine", {})),
        "compile": training["compile"],
        "resumed": len(training["resumed"]),
        "stopped": training["stopped"],
        "config": {
            k: v
            for k, v in plain(cell.options).items()
            if k not in ("data_root", "device", "compile")
        },
    }
    estimate = row_estimate(cell, line)
    if estimate is None:  # a point mass has no log p(x)
        first = results["evaluations"][0]
        return {
            **found,
            **{k: first[k] for k in ("reconstruction_error", "warnings") if k in first},
            "passed": None,
        }
    found |= {
        "log_px": _figures(estimate),
        "protocol": dict(estimate.protocol),
        "warnings": list(estimate.warnings),
    }
    if (annealed := cell.estimate("ais")) is not None:
        difference, error = paired(annealed, estimate)
        above = {"difference": difference, "se_difference": error}  # from importance sampling's
        found["ais"] = {**_figures(annealed), **above, "protocol": dict(annealed.protocol)}
    if (units := cell.record.get("active_units")) is not None:
        found["active_units"] = units
        found["active_units_published"] = (
            line.published.active_units if line.published is not None else None
        )
    return {**found, **verdict(estimate.mean, line.published, budget.full)}


def paired(first: LogMarginal, other: LogMarginal) -> tuple[float, float]:
    """Mean log p(x) of the first less the other's, on the same images, and its paired standard
    error.
    """
    found = pv.compare({"first": first, "other": other}).rows[1]  # which puts the better one above
    return -found.difference if found.name == "other" else found.difference, found.se_difference


def differences(table: Table, estimates: Mapping[str, LogMarginal]) -> list[dict[str, Any]]:
    """For each pair that the paper orders and that is there: the better's log p(x) less the
    other's, image by image.
    """
    found = []
    for better, worse in table.better:
        if better in estimates and worse in estimates:
            value, error = paired(estimates[better], estimates[worse])
            holds = value > CERTAIN * error
            against = -value > CERTAIN * error
            words = "holds" if holds else "reversed" if against else "undecided"
            found.append(
                {"better": better, "worse": worse, "difference": value, "se": error, "order": words}
            )
    return found


def tabulate(
    table: Table, cells: Mapping[str, Cell], budget: Budget, failed: Mapping[str, str]
) -> dict[str, Any]:
    """The table as it stands. ``failed`` gives the reasons of cells that could not be made, or not
    be run.
    """
    rows, estimates = [], {}
    for line in table.rows:
        if line.cell not in cells:
            rows.append(
                {
                    "name": line.name,
                    "cell": line.cell,
                    "state": "not run",
                    "why": failed.get(line.cell, "not asked for"),
                }
            )
            continue
        cell = cells[line.cell]
        rows.append(row(line, cell, budget, failed.get(line.cell, "")))
        if cell.trained and (ll := row_estimate(cell, line)) is not None:
            estimates[line.name] = ll
    judged = [each["passed"] for each in rows if each.get("passed") is not None]
    return {
        "table": table.name,
        "title": table.title,
        "source": table.source,
        "note": table.note,
        "budget": budget.label,
        "rows": rows,
        "differences": differences(table, estimates),
        "done": sum(each["state"] == "done" for each in rows),
        "of": len(rows),
        "passed": sum(judged),
        "judged": len(judged),
    }


def result_file(folder: Path, name: str, budget: Budget, suffix: str = "json") -> Path:
    """``reproduce_NAME.json`` for the published protocol, ``reproduce_NAME.LABEL.json`` for a
    budget or another seed.
    """
    label = "" if budget.label == FULL else f".{budget.label}"
    return folder / f"reproduce_{name}{label}.{suffix}"


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write the table, as JSON and as a page beside it; rows that are done in the file and not here
    stay.

    Raises:
        UserError: the file there is of another budget or table, or is damaged.
    """
    held = read(path, result["table"], result["budget"])
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {each["name"]: each for each in held.get("rows", []) if each.get("state") == "done"}
    rows = [
        each if each["state"] == "done" else kept.get(each["name"], each) for each in result["rows"]
    ]
    judged = [each["passed"] for each in rows if each.get("passed") is not None]
    pairs = {
        (each["better"], each["worse"]): each
        for each in (*held.get("differences", []), *result["differences"])
    }
    merged = {
        **result,
        "rows": rows,
        "differences": list(pairs.values()),
        "done": sum(each["state"] == "done" for each in rows),
        "passed": sum(judged),
        "judged": len(judged),
    }
    write_atomically(
        path, (json.dumps(finite(merged), indent=1, ensure_ascii=False) + "\n").encode()
    )
    write_atomically(path.with_suffix(".md"), markdown(finite(merged)).encode())


def read(path: Path, table: str, label: str) -> dict[str, Any]:
    """What `write` wrote, or nothing where there is no file."""
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        place = held["table"], held["budget"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged, or not a table of this command; move it away") from error
    if place != (table, label):
        raise UserError(
            f"{path} is the table {place[0]} at budget {place[1]}, and these results are {table} "
            f"at {label}: they are never mixed; give another --results"
        )
    return dict(held)


def markdown(result: Mapping[str, Any]) -> str:
    """The table for a terminal and for a page."""
    lines = [
        f"## {result['title']}",
        f"{result['source']}; budget: {_budget(result)}; {result['done']} of {result['of']} rows "
        "done"
        + (
            f"; {result['passed']} of {result['judged']} within the tolerance"
            if result["judged"]
            else ""
        ),
        *_trained_on(result["rows"]),
        "",
        "| | log p(x) | ± MC | published | miss | active | steps | seconds | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(each) for each in result["rows"]]
    if result["differences"]:
        lines += ["", "| better | than | difference ± paired | |", "|---|---|---|---|"]
        lines += [
            f"| {each['better']} | {each['worse']} | {_number(each['difference'])} ± "
            f"{_number(each['se'])} | {each['order']} |"
            for each in result["differences"]
        ]
    return "\n".join([*lines, *(["", result["note"]] if result["note"] else []), ""])


def _budget(result: Mapping[str, Any]) -> str:
    """In words: what shortens the training is no reproduction, and nothing is judged."""
    label = result["budget"]
    return (
        "none, the published schedule"
        if label == FULL
        else f"{label}, not the whole published protocol, so that nothing is judged"
    )


def _trained_on(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The machines of the rows, each once."""
    machines = [row["hardware"] for row in rows if "hardware" in row]
    words = {
        f"{m.get('processor', m['device'])}, {m['device']}, {m['threads']} threads a training"
        for m in machines
    }
    return ["", f"Trained on: {'; '.join(sorted(words))}."] if words else []


def _line(found: Mapping[str, Any]) -> str:
    if found["state"] != "done":
        words = found["state"] + (f": {found['why']}" if found.get("why") else "")
        return f"| {found['name']} | | | | | | {found.get('steps', '')} | | {words} |"
    figures, units = found.get("log_px"), found.get("active_units")
    # that a row under a budget is not judged stands above the table
    words = {True: "within", False: "MISSED", None: ""}[found.get("passed")]
    if (ais := found.get("ais")) is not None:
        apart = f"{_number(ais['difference'])} ± {_number(ais['se_difference'])} from it"
        ours = f"AIS {_number(ais['mean'])} ± {_number(ais['se_mc'], 3)}, {apart}"
        words = "; ".join(filter(None, (words, ours)))
    if "reconstruction_error" in found:
        words = f"a point mass: reconstruction error {_number(found['reconstruction_error'])}"
    active = " + ".join(str(count) for count in units.values()) if units else ""
    if units and found.get("active_units_published") is not None:
        active += f" ({found['active_units_published']})"
    published = (
        f"{_number(found['published'])} ± {found['tolerance']:g}" if "published" in found else ""
    )
    own = (_number(figures["mean"]), _number(figures["se_mc"], 3)) if figures else ("none", "")
    miss = _number(found["miss"]) if "miss" in found else ""
    cells = (
        found["name"],
        *own,
        published,
        miss,
        active,
        found["steps"],
        f"{found['seconds']:.0f}",
        words,
    )
    return "| " + " | ".join(str(each) for each in cells) + " |"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def _figures(ll: LogMarginal) -> dict[str, Any]:
    return {name: float(getattr(ll, name)) for name in FIGURES}


def _hardware(environment: Mapping[str, Any], where: Mapping[str, Any]) -> dict[str, Any]:
    """Where the run was trained: the first machine, those of its resumptions, and the processor."""
    known = {name: environment.get(name) for name in ("device", "threads")}
    known["packages"] = {
        n: v
        for n, v in environment.get("packages", {}).items()
        if n in ("torch", "pyro-ppl", "pyro-vae")
    }
    others = {each.get("device") for each in environment.get("resumed", [])} - {known["device"]}
    return {
        **known,
        **({"also": sorted(filter(None, others))} if others else {}),
        **{name: where[name] for name in ("processor", "cores") if name in where},
    }

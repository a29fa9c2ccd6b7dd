"""Mutated files and words: an answer or one sentence, in finite time, and every file stays as it
was.
"""

from __future__ import annotations

import hashlib
import io
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyro_vae import UserError
from pyro_vae.choices import registry, specs
from pyro_vae.cli.entry import parse
from pyro_vae.data import datasets
from pyro_vae.runs import run_folder
from pyro_vae.runs.build_pair import build_pair
from pyro_vae.runs.config_file import to_toml
from pyro_vae.runs.options import Train
from pyro_vae.runs.run import Run
from pyro_vae.training import checkpoint, checkpoint_files
from pyro_vae.training.state import TrainingState

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
EVERYDAY, STRESS = 50, 250
"""Examples of each of the four kinds of input."""

OPTIONS = Train(data="x.npz", net="MLP(hidden=4)", latent_dim=2, steps=3, guide="MeanField")


@contextmanager
def no_hang() -> Iterator[None]:
    """A minute, for what takes milliseconds."""

    def hang(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


ENDINGS = {ANSWER := "an answer", ONE_LINE := "one line", BOX := "the parser's own box"}


def ending(folder: Path, call: Callable[[], Any]) -> str:
    """How ``call`` ends: by an answer, one line or the parser's box; no file is lost or changed."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with no_hang(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged last checkpoint is told by one
        end = ANSWER
        try:
            call()
        except UserError as error:
            end = ONE_LINE
            message = str(error)
            assert (
                message
                and "\n" not in message.strip()
                and "weights_only" not in message
                and "allow_pickle" not in message
            )
        except SystemExit as parsed:
            end = BOX
            assert parsed.code == 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return end


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes changed, cut out, put in, doubled, or cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(found) - 1, 0)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "double", "end"]))
        size = draw(st.integers(1, 40))
        if kind == "change" and found:
            found[place] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del found[place : place + size]
        elif kind == "insert":
            found[place:place] = draw(st.binary(max_size=40))
        elif kind == "double":
            found[place:place] = found[place : place + size]
        else:
            del found[place:]
    return bytes(found)


VALUES = st.one_of(
    *(
        st.integers(),
        st.floats(),
        st.booleans(),
        st.text(max_size=20),
        st.sampled_from(["MeanField", "MLP(hidden=0)", "inf"]),
    ),
    *(
        st.lists(st.integers(), max_size=3),
        st.dictionaries(st.sampled_from("ab"), st.integers(), max_size=1),
    ),
)


def config_ending(folder: Path, content: bytes) -> str:
    """A configuration file, and its options as far as the objects."""
    path = folder / "fuzzed.toml"
    path.write_bytes(content)

    def read() -> None:
        options = parse(["train", "--config", str(path)])
        assert isinstance(options, Train)
        if options.latent_dim <= 64 and len(options.net) < 40:
            build_pair(options, (1, 8, 8), 100)

    return ending(folder, read)


def config_files() -> st.SearchStrategy[bytes]:
    """Those that are nearly right, and those whose values are anything."""
    import tomli_w

    names = st.sampled_from([*Train.__dataclass_fields__, "latent_dmi", "seed-"])
    tables = st.dictionaries(names, VALUES, max_size=4).map(
        lambda held: tomli_w.dumps(held).encode("utf-8", "replace")
    )
    return mutated(to_toml(OPTIONS)) | tables


PIECES = st.sampled_from(
    ["MeanField", "Bernoulli", "MLP", "Conv", "(", ")", ",", "=", "hidden", "(4, 4)", "'", '"', "a.py:B", "a.b:C", "1e999", "-",
     "[", "]", "{", "}", "None", "lambda", "__import__('os')", "é", "\x00", "\n", "#", "'''", "latent_dim", "=3", "9" * 30, "*",
     ":", "..", " "]
)  # fmt: skip
SPECS = (
    st.lists(PIECES, max_size=12).map("".join)
    | st.text(max_size=60)
    | mutated(b"MLP(hidden=(20, 20), activation=tanh)").map(
        lambda content: content.decode("utf-8", "replace")
    )
)


def spec_ending(folder: Path, spec: str) -> str:
    """A choice: read, written again, read again; then built as a guide."""

    def read() -> None:
        choice = specs.parse(spec)
        assert specs.parse(str(choice)) == choice
        with suppress(MemoryError):
            registry.build(
                "guide", spec, event_shape=(1, 8, 8), latent_dim=2, net="MLP(hidden=4)", num_data=5
            )

    return ending(folder, read)


def npz() -> bytes:
    """A small data set."""
    content = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)
    np.savez(content, images=images, labels=np.arange(12))
    return content.getvalue()


ARRAYS = st.builds(
    lambda shape, dtype, name: (name, np.zeros(shape, dtype)),
    st.lists(st.integers(0, 4), max_size=5).map(tuple),
    st.sampled_from(["u1", "i8", "f4", "f8", "c8", "b", "U3", "S2", "M8[s]"]),
    st.sampled_from(["images", "train", "test", "labels", "train_labels", "other"]),
)


def saved(arrays: list[tuple[str, Any]]) -> bytes:
    """As a .npz file."""
    content = io.BytesIO()
    np.savez(content, **dict(arrays))
    return content.getvalue()


def npz_ending(folder: Path, content: bytes) -> str:
    """A data file."""
    path = folder / "fuzzed.npz"
    path.write_bytes(content)
    return ending(folder, lambda: datasets.load(str(path)))


def make_run(folder: Path) -> tuple[Path, bytes]:
    """A run with one checkpoint, and that file's content."""
    run = Run(folder / "run")
    run.folder.mkdir()
    options = OPTIONS
    run.config_file.write_bytes(to_toml(options))
    model, guide = build_pair(options, (1, 4, 4), 10)
    held = checkpoint_files.Checkpoint(
        checkpoint.state_of(model, guide), {"event_shape": [1, 4, 4], "num_data": 10}
    )
    path = checkpoint_files.add(run.checkpoints, held, 3)
    return path, path.read_bytes()


ODD = st.recursive(
    st.none()
    | st.integers(-2, 2)
    | st.text(max_size=4)
    | st.just(torch.zeros(2))
    | st.just(float("nan")),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["model", "guide", "training", "position"]), inner, max_size=2
        )
    ),
    max_leaves=6,
)


def odd_checkpoint(parts: dict[str, Any]) -> bytes:
    """Loads as tensors and plain values, and is no checkpoint."""
    content = io.BytesIO()
    torch.save(parts, content)
    return content.getvalue()


PARTS = st.dictionaries(
    st.sampled_from(["format", "version", "sections", "metadata"]), ODD, max_size=4
).map(lambda parts: odd_checkpoint({"format": 1, **parts}))


def checkpoint_ending(folder: Path, path: Path, content: bytes, known: bool) -> str:
    """A checkpoint's file, its digest made right or left as it was: loaded as a run's and as a
    training's.
    """
    before = checkpoint_files.manifest(path).read_bytes()
    path.write_bytes(content)
    if known:
        checkpoint_files.manifest(path).write_text(
            f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
        )
    ends = {
        ending(folder, lambda: run_folder.load(folder / "run")),
        ending(folder, lambda: TrainingState.load(path)),
    }
    checkpoint_files.manifest(path).write_bytes(before)
    return ONE_LINE if ONE_LINE in ends else ANSWER


# ------------------------------------------------------------------------------------------


def endings(kind: str, folder: Path, examples: int) -> list[str]:
    """How so many inputs of a kind end, one after the other."""
    found: list[str] = []
    bounds = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=QUIET,
    )
    if kind == "checkpoint":
        path, content = make_run(folder)
        given(mutated(content) | PARTS, st.booleans())(
            bounds(lambda file, known: found.append(checkpoint_ending(folder, path, file, known)))
        )()
        return found
    inputs: dict[str, tuple[st.SearchStrategy[Any], Callable[[Path, Any], str]]] = {
        "config": (config_files(), config_ending),
        "spec": (SPECS, spec_ending),
        "npz": (mutated(npz()) | st.lists(ARRAYS, max_size=3).map(saved), npz_ending),
    }
    strategy, end_of = inputs[kind]
    given(strategy)(bounds(lambda content: found.append(end_of(folder, content))))()
    return found


KINDS = ["config", "spec", "npz", "checkpoint"]


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_input(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = endings(kind, tmp_path, EVERYDAY)
    assert len(found) == EVERYDAY and set(found) <= ENDINGS and ONE_LINE in found


@pytest.mark.stress
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_input_at_length(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = endings(kind, tmp_path, STRESS)
    assert len(found) == STRESS and set(found) <= ENDINGS and ONE_LINE in found

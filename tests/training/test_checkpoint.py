"""A checkpoint is read back as it was written, or refused in a sentence that names the file;
nothing in it is run.
"""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pyro_vae.errors import UserError
from pyro_vae.files import sweep, write_atomically
from pyro_vae.training import checkpoint, checkpoint_files
from pyro_vae.training.checkpoint import Checkpoint


def held(seed: int = 0) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    model = {
        "w": torch.randn(3, 2, generator=generator),
        "n": torch.tensor(7),
        "half": torch.ones(2).double(),
    }
    return Checkpoint(
        {"model": model, "guide": {"b": torch.randn(4, generator=generator)}},
        {"epoch": 3, "shape": [1, 8]},
    )


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "weights_only" not in message
    for word in words:
        assert word in message


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint_files.save(path, held())
    again = checkpoint_files.load(path)
    assert dict(again.metadata) == {"epoch": 3, "shape": [1, 8]}
    for role, section in held().sections.items():
        assert again.sections[role].keys() == section.keys()
        for key, value in section.items():
            assert again.sections[role][key].dtype == value.dtype
            assert torch.equal(again.sections[role][key], value)


def test_the_manifest_is_what_sha256sum_reads_and_no_scratch_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint_files.save(path, held())
    digest, name = checkpoint_files.manifest(path).read_text().split()
    assert name == "a.pt" and len(digest) == 64
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pt", "a.pt.sha256"]


@pytest.mark.parametrize("place", [0, 100, -40])
def test_one_flipped_bit_is_found(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.pt"
    checkpoint_files.save(path, held())
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    refused(lambda: checkpoint_files.load(path), str(path), "damaged")


def test_a_truncated_or_empty_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint_files.save(path, held())
    for content in (path.read_bytes()[:-10], b""):
        path.write_bytes(content)
        refused(lambda: checkpoint_files.load(path), str(path), "damaged")


def test_a_missing_file_or_manifest_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    refused(lambda: checkpoint_files.load(path), str(path), "no such")
    checkpoint_files.save(path, held())
    checkpoint_files.manifest(path).unlink()
    refused(lambda: checkpoint_files.load(path), str(path), "SHA-256")


class Evil:
    """Unpickled carelessly, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize(
    "content",
    [
        b"<html>",
        pickle.dumps(3),
        pickle.dumps({"format": 1}),
        pickle.dumps({"sections": {}, "format": 99}),
    ],
)
def test_other_files_are_refused_even_with_a_right_digest(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pt"
    write_with_manifest(path, content)
    refused(lambda: checkpoint_files.load(path), str(path))


def test_too_little_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be read or written for it is not set aside as damaged, nor told in torch's words."""
    held = checkpoint_files.Checkpoint({"model": {"w": torch.ones(2)}, "guide": {}}, {})
    checkpoint_files.save(tmp_path / "a.pt", held)

    def full(words: str) -> Any:
        def fails(*_: Any, **__: Any) -> None:
            raise RuntimeError(words)

        return fails

    monkeypatch.setattr(torch, "load", full("can't allocate memory: you tried to allocate 9 bytes"))
    with pytest.raises(RuntimeError, match="can't allocate"):
        checkpoint_files.load(tmp_path / "a.pt")
    monkeypatch.setattr(torch, "save", full("[enforce fail] . unexpected pos 288 vs 180"))
    with pytest.raises(MemoryError, match=r"no room for a copy of b\.pt"):
        checkpoint_files.save(tmp_path / "b.pt", held)
    assert not (tmp_path / "b.pt").exists()


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    path, trap = tmp_path / "a.pt", tmp_path / "trap"
    torch.save({"format": 1, "sections": {"model": Evil(trap)}, "metadata": {}}, path)
    write_with_manifest(path, path.read_bytes())
    refused(lambda: checkpoint_files.load(path), str(path), "tensors and plain values")
    assert not trap.exists()


def write_with_manifest(path: Path, content: bytes) -> None:
    import hashlib

    path.write_bytes(content)
    checkpoint_files.manifest(path).write_text(
        f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    )


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    checkpoint_files.save(path, held(0))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint_files.save(path, held(1))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    checkpoint_files.load(path)


def test_the_file_is_forced_to_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        calls.append("fsync")
        sync(descriptor)

    def note_replace(old: Any, new: Any) -> None:
        calls.append("replace")
        assert Path(old).parent == Path(new).parent
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_atomically(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_the_latest_is_the_last_by_name_that_has_its_manifest(tmp_path: Path) -> None:
    refused(lambda: checkpoint_files.latest(tmp_path), "no checkpoint")
    for name in ("epoch-000002", "epoch-000010", "epoch-000010-stopped"):
        checkpoint_files.save(tmp_path / f"{name}.pt", held())
    (tmp_path / "epoch-000011.pt").write_bytes(b"written, and then the power went")
    assert checkpoint_files.latest(tmp_path).name == "epoch-000010-stopped.pt"


def test_the_newest_sound_one_is_taken_and_the_line_says_so(tmp_path: Path) -> None:
    for step in (2, 3):
        checkpoint_files.add(tmp_path, held(step), step)
    assert [path.stem for path in checkpoint_files.complete(tmp_path)] == [
        "step-000000002",
        "step-000000003",
    ]
    assert checkpoint_files.newest(tmp_path).note == ""
    path = tmp_path / "step-000000003.pt"
    for content in (path.read_bytes()[:-1], b"", b"x" * 100):
        path.write_bytes(content)
        found = checkpoint_files.newest(tmp_path)
        assert found.path.stem == "step-000000002" and list(found.unsound) == [path]
        assert (
            "damaged" in found.note
            and "step-000000002.pt, is used" in found.note
            and "\n" not in found.note
        )
    checkpoint_files.set_aside(found.unsound)
    assert (
        checkpoint_files.newest(tmp_path).note == ""
        and (tmp_path / "step-000000003.pt.damaged").read_bytes() == b"x" * 100
    )
    (tmp_path / "step-000000002.pt").write_bytes(b"")
    refused(lambda: checkpoint_files.newest(tmp_path), "step-000000002.pt", "damaged")


def test_a_step_that_comes_again_is_not_written_over(tmp_path: Path) -> None:
    for seed in range(12):
        checkpoint_files.add(tmp_path, held(seed), 7)
    again = [
        f"step-000000007-{number}" for number in range(2, 13)
    ]  # in the order of writing, -10 after -9
    assert [path.stem for path in checkpoint_files.complete(tmp_path)] == ["step-000000007", *again]
    assert torch.equal(
        checkpoint_files.newest(tmp_path).held.sections["guide"]["b"],
        held(11).sections["guide"]["b"],
    )


def test_the_best_stands_beside_the_last(tmp_path: Path) -> None:
    refused(lambda: checkpoint_files.newest(tmp_path, best=True), "no checkpoint")
    checkpoint_files.add(tmp_path, held(1), 1)
    refused(lambda: checkpoint_files.newest(tmp_path, best=True), "no best checkpoint")
    for step in (1, 2):
        checkpoint_files.add(tmp_path, held(step), step, best=True)
    assert checkpoint_files.newest(tmp_path, best=True).path.stem == "best-000000002"
    assert checkpoint_files.newest(tmp_path).path.stem == "step-000000001"
    checkpoint_files.remove(tmp_path / "step-000000001.pt")
    refused(
        lambda: checkpoint_files.newest(tmp_path),
        "no checkpoint in it but the best one, best-000000002.pt",
    )


def remove_digest(path: Path) -> None:
    checkpoint_files.manifest(path).unlink()


def a_folder_in_its_place(path: Path) -> None:
    remove_digest(path)
    checkpoint_files.manifest(path).mkdir()


def a_link_to_nothing(path: Path) -> None:
    remove_digest(path)
    checkpoint_files.manifest(path).symlink_to("nowhere")


LOST = pytest.mark.parametrize("lose", [remove_digest, a_folder_in_its_place, a_link_to_nothing])


@LOST
def test_without_its_digest_the_newest_one_is_passed_over_with_a_line(
    lose: Callable[[Path], None], tmp_path: Path
) -> None:
    for step in (1, 2):
        checkpoint_files.add(tmp_path, held(step), step)
    path = tmp_path / "step-000000002.pt"
    content = path.read_bytes()
    lose(path)
    found = checkpoint_files.newest(tmp_path)
    assert found.path.stem == "step-000000001" and "\n" not in found.note
    assert f"{path}: its SHA-256 (step-000000002.pt.sha256) is " in found.note
    assert found.note.endswith("the previous one, step-000000001.pt, is used")
    checkpoint_files.set_aside(found.unsound)
    assert checkpoint_files.newest(tmp_path).note == ""
    assert (tmp_path / "step-000000002.pt.superseded").read_bytes() == content


@LOST
def test_checkpoints_without_their_digests_are_named_and_none_is_touched(
    lose: Callable[[Path], None], tmp_path: Path
) -> None:
    paths = [checkpoint_files.add(tmp_path, held(step), step, best=step == 1) for step in (1, 2, 3)]
    for path in paths:
        lose(path)
    names = "best-000000001.pt, step-000000002.pt, step-000000003.pt"
    for best in (False, True):
        refused(
            lambda best=best: checkpoint_files.newest(tmp_path, best),
            f"3 checkpoints without their SHA-256: {names}; restore",
        )
    for path in paths[1:]:
        path.unlink()
    refused(
        lambda: checkpoint_files.newest(tmp_path, best=True),
        "1 checkpoint without its SHA-256: best-000000001.pt; ",
    )
    assert paths[0].is_file()


def test_the_advice_for_a_lost_digest_serves(tmp_path: Path) -> None:
    """What the line says to do: `sha256sum NAME > NAME.sha256` in the folder."""
    path = checkpoint_files.add(tmp_path, held(), 1)
    remove_digest(path)
    with pytest.raises(UserError) as caught:
        checkpoint_files.newest(tmp_path)
    command = str(caught.value).split("`")[1]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert checkpoint_files.newest(tmp_path).path == path


def test_a_digest_that_cannot_be_read_is_not_an_absent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint_files.add(tmp_path, held(), 1)

    def read_text(self: Path, *_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", read_text)
    refused(
        lambda: checkpoint_files.newest(tmp_path),
        "1 checkpoint without its SHA-256: step-000000001.pt",
    )
    refused(lambda: checkpoint_files.load(path), "can't be read (Permission denied)")


def test_writing_removes_nothing(tmp_path: Path) -> None:
    """Whatever has a checkpoint's name stays, later steps under another name; what is set aside is
    never written over.
    """
    for number, name in enumerate(
        ["step-000000001.pt", "step-000000009.pt", "step-000000009.pt.superseded", "mine.pt"]
    ):
        (tmp_path / name).write_bytes(bytes([number]))
    (tmp_path / "step-000000008.pt").mkdir()
    (tmp_path / "step-000000007.pt").symlink_to("nowhere")
    (tmp_path / "step-000000002.pt.sha256").write_text("of another")
    contents = {path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    path = checkpoint_files.add(tmp_path, held(), 2)
    assert path.name == "step-000000002-2.pt" and checkpoint_files.newest(tmp_path).path == path
    assert contents < {each.read_bytes() for each in tmp_path.iterdir() if each.is_file()}
    assert (tmp_path / "step-000000009.pt.superseded-2").read_bytes() == b"\1"
    assert (tmp_path / "step-000000008.pt.superseded").is_dir()
    assert (tmp_path / "step-000000007.pt.superseded").is_symlink()


def test_a_kill_between_the_two_renames_leaves_no_checkpoint_and_none_without_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_files.add(tmp_path, held(1), 1)
    replace, calls = os.replace, []

    def killed(old: Any, new: Any) -> None:
        calls.append(Path(new).name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", killed)
        checkpoint_files.add(tmp_path, held(2), 2)
    assert calls == ["step-000000002.pt.sha256", "step-000000002.pt"]
    assert (
        checkpoint_files.newest(tmp_path).path.stem == "step-000000001"
        and checkpoint_files.newest(tmp_path).note == ""
    )
    checkpoint_files.add(tmp_path, held(3), 2)
    assert torch.equal(
        checkpoint_files.newest(tmp_path).held.sections["guide"]["b"],
        held(3).sections["guide"]["b"],
    )


@pytest.mark.parametrize("how", ["a damaged one", "a later one", "one that is removed"])
def test_a_kill_between_two_renames_or_removals_leaves_nothing_to_be_told_of(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file goes before its SHA-256, so that there is never a checkpoint that can't be checked."""
    first, second = (checkpoint_files.add(tmp_path, held(step), step) for step in (1, 2))
    if how == "a damaged one":
        second.write_bytes(b"")
    unsound = checkpoint_files.newest(tmp_path).unsound
    calls: list[str] = []
    originals: dict[str, Any] = {name: getattr(os, name) for name in ("rename", "unlink")}

    def killed(name: str) -> Callable[..., None]:
        def call(path: Any, *others: Any, **named: Any) -> None:
            calls.append(Path(path).name)
            if len(calls) == 2:
                raise KeyboardInterrupt
            originals[name](path, *others, **named)

        return call

    acts = {
        "a damaged one": lambda: checkpoint_files.set_aside(unsound),
        "a later one": lambda: checkpoint_files.add(tmp_path, held(3), 1),
        "one that is removed": lambda: checkpoint_files.remove(second),
    }
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        for name in originals:
            patched.setattr(os, name, killed(name))
        acts[how]()
    assert calls == [second.name, checkpoint_files.manifest(second).name]
    found = checkpoint_files.newest(tmp_path)
    assert found.path == first and found.note == ""
    acts[how]() if how != "a damaged one" else checkpoint_files.set_aside(found.unsound)
    assert checkpoint_files.newest(tmp_path).note == ""


@pytest.mark.parametrize("kind", ["a file", "a link to nothing"])
def test_a_folder_that_cannot_be_read_is_not_one_without_checkpoints(
    kind: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    assert checkpoint_files.listed(folder) == []
    folder.write_text("mine") if kind == "a file" else folder.symlink_to("nowhere")
    for call in (checkpoint_files.listed, checkpoint_files.newest, checkpoint_files.latest):
        refused(lambda call=call: call(folder), str(folder), "no folder of checkpoints")


def test_a_newer_format_names_the_version_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_files.add(tmp_path, held(), 1)
    with monkeypatch.context() as future:
        future.setattr(checkpoint, "FORMAT", 3)
        future.setattr(checkpoint, "__version__", "2.5.0")
        checkpoint_files.add(tmp_path, held(), 2)
    words = ["format 3", "reads format 1", "install pyro-vae 2.5.0 or later"]
    refused(
        lambda: checkpoint_files.newest(tmp_path), *words
    )  # the one before would hide a mistake: it is not taken


def test_scratch_files_of_the_dead_are_swept(tmp_path: Path) -> None:
    kept = [
        ".a.pt.1.tmp",
        "a.tmp",
        ".tmp",
        ".a.pt.tmp",
        ".a.pt.x.tmp",
        "a.pt.4194305.tmp",
    ]  # process 1 is alive
    for name in (*kept, ".a.pt.4194305.tmp", f".a.pt.{os.getpid()}.tmp"):
        (tmp_path / name).write_bytes(b"")
    sweep(tmp_path)
    sweep(tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_restoring_into_other_modules_is_refused() -> None:
    source, other = nn.Linear(3, 2), nn.Linear(4, 2)
    kept = Checkpoint(checkpoint.state_of(source, source))
    twin = nn.Linear(3, 2)
    checkpoint.restore(kept, twin, twin, "a.pt")
    assert torch.equal(twin.weight, source.weight)
    refused(
        lambda: checkpoint.restore(kept, source, other, "a.pt"),
        "a.pt",
        "guide",
        "size mismatch",
    )
    refused(lambda: checkpoint.restore(Checkpoint({}), source, other, "a.pt"), "a.pt", "model")


def test_a_program_that_is_no_module_is_named() -> None:
    refused(lambda: checkpoint.state_of(nn.Linear(1, 1), lambda x: x), "guide", "nn.Module")

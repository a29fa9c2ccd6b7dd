"""Named fields: what the programs get besides x, as tensors with one row for each image.

A batch is rows, so whatever a caller gives, a nested dict, a packed sequence or one number for all
images, is kept by its rows under names of the kind `Part`. `arguments` makes of a batch's rows what
the program's own argument is.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import TreeSpec, keystr, tree_flatten_with_path, tree_map, tree_unflatten

from pyro_vae.errors import UserError
from pyro_vae.tensors import A_FIELD, as_tensor


class _Rows:
    """A placeholder for a leaf that has rows."""

    def __repr__(self) -> str:
        return "rows"


ROWS = _Rows()


class Part(str):
    """The name of one leaf of an argument, with what else is needed to make the argument again."""

    argument: str  # the program's name of the whole
    spec: TreeSpec  # of the whole
    number: int  # among its leaves
    value: Any  # what the leaf is for all images, or ROWS

    @staticmethod
    def of(name: str, argument: str, spec: TreeSpec, number: int, value: Any = ROWS) -> Part:
        """A part called ``name``."""
        part = Part(name)
        part.argument, part.spec, part.number, part.value = argument, spec, number, value
        return part

    def __reduce__(self) -> Any:
        return Part.of, (str(self), self.argument, self.spec, self.number, self.value)

    def __deepcopy__(self, memo: Any) -> Part:
        return self


class _Packed(NamedTuple):
    """A packed sequence, whose rows are the images in their own order."""

    rows: Tensor  # (N, T, …), padded by zeros
    lengths: Tensor  # (N,)


def argument_of(name: str) -> str:
    """The program's argument that the field ``name`` is, or is a part of."""
    return name.argument if isinstance(name, Part) else name


def is_constant(name: str) -> TypeGuard[Part]:
    """Whether the field is one value for all images."""
    return isinstance(name, Part) and name.value is not ROWS


def made_of(name: Part) -> str:
    """What distinguishes two fields of one name, shape and dtype: the constant, in words."""
    return f"{name.spec}{name.value!r}"


def merged(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by the programs' names: a mapping called ``fields`` has those that an option has
    the name of.
    """
    inner = fields.get("fields")
    if not isinstance(inner, Mapping):
        return dict(fields)
    outer = {name: value for name, value in fields.items() if name != "fields"}
    if twice := sorted(outer.keys() & inner.keys()):
        raise UserError(f"field {twice[0]!r} is given twice, by its name and in fields={{…}}")
    return {**outer, **inner}


def as_fields(fields: Mapping[str, Any], num_images: int) -> dict[str, Tensor]:
    """What was given besides x as tensors with one row an image.

    Args:
        fields: by the programs' names: tensors and arrays with one row an image; dicts, lists and
            tuples of them; packed sequences; and what is one for all images (a number, None, a
            string, a tensor of no dimensions). A mapping called ``fields`` may have some.
        num_images: rows.

    Raises:
        UserError: rows that are not as many, or not numbers.
    """
    found: dict[str, Tensor] = {}
    for name, value in merged(fields).items():
        if isinstance(name, Part):  # kept by its rows already
            found[name] = value
        elif _is_nested(value) or _is_one(value):
            found |= _parts(name, value, num_images)
        else:
            found[name] = _rows(name, value, num_images)
    return found


def constants(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those fields that are one value for all images."""
    return {name: value for name, value in merged(fields).items() if _is_one(value)}


def arguments(fields: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a program receives: the rows as they are, and the parts put together again."""
    given: dict[str, Any] = {}
    parts: dict[str, dict[int, Any]] = {}
    specs: dict[str, TreeSpec] = {}
    for name, value in fields.items():
        if not isinstance(name, Part):
            given[name] = value
            continue
        leaf = value if name.value is ROWS else name.value
        if isinstance(leaf, Tensor):
            leaf = leaf.to(value.device)
        parts.setdefault(name.argument, {})[name.number] = leaf
        specs[name.argument] = name.spec
    for name, leaves in parts.items():
        whole = tree_unflatten([leaves[number] for number in sorted(leaves)], specs[name])
        given[name] = tree_map(_packed, whole, is_leaf=lambda value: isinstance(value, _Packed))
    return given


def _packed(leaf: Any) -> Any:
    if not isinstance(leaf, _Packed):
        return leaf
    lengths = leaf.lengths.cpu()
    return pack_padded_sequence(leaf.rows, lengths, batch_first=True, enforce_sorted=False)


def _padded(leaf: Any) -> Any:
    return (
        _Packed(*pad_packed_sequence(leaf, batch_first=True))
        if isinstance(leaf, PackedSequence)
        else leaf
    )


def _parts(name: str, value: Any, num_images: int) -> dict[str, Tensor]:
    padded = tree_map(_padded, value, is_leaf=lambda each: isinstance(each, PackedSequence))
    with_paths, spec = tree_flatten_with_path(padded, is_leaf=lambda each: each is None)
    found: dict[str, Tensor] = {}
    for number, (path, leaf) in enumerate(with_paths):
        own = f"{name}{keystr(path)}"
        if _is_one(leaf):
            blank = torch.zeros(num_images, 1, dtype=torch.bool)
            found[Part.of(own, name, spec, number, leaf)] = blank
        else:
            found[Part.of(own, name, spec, number)] = _rows(own, leaf, num_images)
    return found


def _is_one(value: Any) -> bool:
    """Whether it has no rows: it is the same for all images."""
    if isinstance(value, str) or getattr(value, "shape", None) == ():
        return True
    return not hasattr(value, "__len__") and not hasattr(value, "__array__")


def has_rows(value: Any) -> bool:
    """Whether it is numbers by rows, or has them."""
    return isinstance(value, Tensor | np.ndarray) or _is_nested(value)


def _is_nested(value: Any) -> bool:
    if isinstance(value, PackedSequence | Mapping):
        return True
    return isinstance(value, list | tuple) and any(
        has_rows(each) and getattr(each, "shape", None) != () for each in value
    )


def _rows(name: str, value: Any, num_images: int) -> Tensor:
    given = value
    if not isinstance(value, np.ndarray | Tensor) and not hasattr(value, "to_numpy"):
        with suppress(TypeError, ValueError, RuntimeError):  # a list of numbers
            given = torch.as_tensor(value)
    rows = as_tensor(given, f"field {name!r}", A_FIELD).contiguous()
    if rows.dim() == 0 or len(rows) != num_images:
        raise UserError(
            f"field {name!r} has shape {tuple(rows.shape)}, but there are {num_images} images: "
            "expected one row for each image. A tensor that all images share is not a field: "
            "make it an attribute of the program's module, or bind it with functools.partial"
        )
    return rows

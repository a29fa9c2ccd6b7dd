"""Laws of the registry: what is written is read back, nothing is evaluated, the spec wins over the
context.
"""

import keyword
import subprocess
import sys
from abc import ABC, abstractmethod
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_vae.choices import lookup, registry
from pyro_vae.choices.lookup import members, resolve
from pyro_vae.choices.registry import build
from pyro_vae.choices.specs import Choice, parse
from pyro_vae.errors import UserError
from pyro_vae.runs.parts import Part, describe


class MLP:
    """Layers."""

    slot = "net"

    def __init__(self, in_shape, out_shape, hidden=(500, 500), activation="silu"):
        pass


class Conv:
    slot = "net"

    def __init__(self, in_shape, out_shape, channels=(32,), activation="relu"):
        pass


class Abstract(ABC):
    slot = "guide"

    @abstractmethod
    def build(self) -> None: ...


class MeanField:
    """Independent Gaussians.

    More.
    """

    slot = "guide"

    def __init__(self, event_shape, latent_dim, net="MLP", **net_args):
        self.event_shape, self.latent_dim, self.net, self.net_args = (
            event_shape,
            latent_dim,
            net,
            net_args,
        )


class Forwards(MeanField):
    slot = "guide"

    def __init__(self, event_shape, latent_dim, depth=2, **kwargs):
        super().__init__(event_shape, latent_dim, **kwargs)
        self.depth = depth


class Normal:
    slot = "prior"

    def __init__(self, latent_dim, scale=1.0):
        if not isinstance(scale, float):
            raise TypeError("scale\nmust be a float")
        if scale <= 0:
            raise UserError("Normal(scale): must be positive")
        self.latent_dim, self.scale = latent_dim, scale


class Vamp:
    slot = "prior"

    def __init__(self, latent_dim, encoder, components=3):
        self.latent_dim, self.encoder, self.components = latent_dim, encoder, components


class Model:
    slot = "model"

    def __init__(self, prior, likelihood="none"):
        self.prior, self.likelihood = prior, likelihood


class Digits:
    """The digits."""


FAKES: dict[str, dict[str, Any]] = {
    "fake_models": {"Normal": Normal, "Vamp": Vamp, "Model": Model},
    "fake_guides": {
        "Abstract": Abstract,
        "MeanField": MeanField,
        "Forwards": Forwards,
        "helper": len,
    },
    "fake_nn": {"MLP": MLP, "Conv": Conv},
}
CONTEXT: dict[str, Any] = {"event_shape": (4,), "latent_dim": 2}


@pytest.fixture(autouse=True)
def fake_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, parts in FAKES.items():
        module = ModuleType(name)
        vars(module).update(parts, __all__=list(parts))
        monkeypatch.setitem(sys.modules, name, module)
    data = ModuleType("fake_data")
    data.DATASETS = {"digits": Digits}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_data", data)
    places = {
        "model": "fake_models",
        "prior": "fake_models",
        "guide": "fake_guides",
        "net": "fake_nn",
        "data": "fake_data",
    }
    places |= {"optimizer": "torch.optim", "schedule": "not_there"}
    for module in (lookup, registry):
        monkeypatch.setattr(module, "NAMESPACES", places)


def refusal(slot: str, spec: Any, **context: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(slot, spec, **context)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


# Reading

identifiers = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
    lambda text: text not in ("inf", "__debug__") and not keyword.iskeyword(text)
)
files = st.from_regex(r"[A-Za-z0-9_.~/ -]{0,12}[a-z]\.py", fullmatch=True).map(str.strip)
places = st.lists(identifiers, min_size=1, max_size=3).map(".".join) | files
part_names = identifiers | st.tuples(places, identifiers).map(":".join)
scalars = (
    st.booleans()
    | st.none()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.sampled_from(["inf", "learned", "a:B", "'''", '"', "it's # 1", "\\", "None", "ﬁ", ""])
)


def choices(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Choice]:
    args = st.lists(values, max_size=2).map(tuple)
    return st.builds(Choice, part_names, args, st.dictionaries(identifiers, values, max_size=2))


values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=2).map(tuple) | choices(inner)
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(choices(values))
def test_what_is_written_is_read_back(choice: Choice) -> None:
    again = parse(str(choice))
    assert repr(again) == repr(choice)  # 1, 1.0 and True are equal, but not the same choice


@settings(max_examples=200, deadline=None)
@given(st.text("AB(),:='\"[]{}*#. _\\/1e-\n", max_size=20) | st.text(max_size=20))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        choice = parse(text)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert parse(str(choice)) == choice


@pytest.mark.parametrize(
    ("spec", "choice"),
    [
        ("IAF", Choice("IAF")),
        (" IAF( ) ", Choice("IAF")),
        ("IAF(3, depth=4)", Choice("IAF", (3,), {"depth": 4})),
        (
            "G(scale=learned, a=-1e-4, b=None)",
            Choice("G", (), {"scale": "learned", "a": -1e-4, "b": None}),
        ),
        ("G(inf, -inf, 'inf')", Choice("G", (float("inf"), -float("inf"), "inf"))),
        (
            "G(hidden=(200, 200), x=[1, (2,)])",
            Choice("G", (), {"hidden": (200, 200), "x": [1, (2,)]}),
        ),
        (
            "G(prior=V(k=2), net=N())",
            Choice("G", (), {"prior": Choice("V", (), {"k": 2}), "net": Choice("N")}),
        ),
        ("my_lab.guides:Mine(depth=2)", Choice("my_lab.guides:Mine", (), {"depth": 2})),
        ("my lab/é/file.py:Mine", Choice("my lab/é/file.py:Mine")),
        (r"C:\lab\file.py:Mine(1)", Choice(r"C:\lab\file.py:Mine", (1,))),
        (
            "é/f.py:A(x='é:b', y= b.c:D(1), z=f.py:E)",
            Choice("é/f.py:A", (), {"x": "é:b", "y": Choice("b.c:D", (1,)), "z": "f.py:E"}),
        ),
    ],
)
def test_reads(spec: str, choice: Choice) -> None:
    assert parse(spec) == choice


@pytest.mark.parametrize(
    ("spec", "position"),
    [
        ("", 1),
        ("3", 1),
        ("'IAF'", 1),
        ("torch.nn", 1),
        ("A(x=b.c)", 5),
        ("A(é=b[0])", 5),
        ("A(x=1+2)", 5),
        ("A(x=+1)", 5),
        ("A(x=-True)", 5),
        ("A(x=1j)", 5),
        ("A(x=b'1')", 5),
        ("A(x={1})", 5),
        ("A(x={a: 1})", 5),
        ("A(x=f'{b}')", 5),
        ("A(x=lambda: 1)", 5),
        ("A(x=lambda a:b)", 5),
        ("A([i for i in b])", 3),
        ("A(*b)", 3),
        ("A(**b)", 5),
        ("A(b)(c)", 1),
        ("A(x=1, x=2)", 10),
        ("A(x=1) # y", 8),
        ("A(x='''b''')", 5),
        ("A(x=\n1)", 5),
        (r"A(x='\d')", 5),
        ("1:A", 1),
        ("A(x=(y := 1))", 6),
        ("A(x=...)", 5),
    ],
)
def test_refuses_with_the_position(spec: str, position: int) -> None:
    with pytest.raises(UserError, match=f"position {position}: ") as caught:
        parse(spec)
    assert repr(spec.strip()) in str(caught.value)


@pytest.mark.parametrize(
    "unit",
    [
        "(",
        "[",
        "A(",
        "-",
        "not ",
        "a.",
        "lambda:",
        "A(x=",
        "a:",
        "'",
        "1+",
        "{",
        "x if y else ",
        "9",
    ],
)
@pytest.mark.parametrize("times", [25, 150, 900, 10**6])
def test_hostile_specs_are_refused(unit: str, times: int) -> None:
    with pytest.raises(UserError):
        parse("A(" + unit * times + "1)")
    if unit != "(" or times > 150:  # superfluous brackets, (((1))), are harmless
        with pytest.raises(UserError):
            parse("A(" + unit * times + "1" + ")" * times + ")")


def test_never_evaluates(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for spec in (
        f'__import__("os").system("touch {made}")',
        f"MeanField(x=__import__('os').system('touch {made}'))",
    ):
        refusal("guide", spec, **CONTEXT)
    refusal("guide", "MeanField(hidden=__import__('os'))", **CONTEXT)
    assert not made.exists()


# Finding


def test_a_slot_has_its_concrete_classes() -> None:
    assert members("guide") == {"MeanField": MeanField, "Forwards": Forwards}
    assert list(members("prior")) == ["Normal", "Vamp"] and list(members("model")) == ["Model"]
    assert members("data") == {"digits": Digits}


def test_optimizers_are_those_of_torch() -> None:
    found = members("optimizer")
    assert "Adam" in found and not {"Optimizer", "LBFGS", "functional", "lr_scheduler"} & set(found)


def test_unknown_names() -> None:
    assert "did you mean 'MeanField'? choices: Forwards, MeanField" in refusal(
        "guide", "MeanFeild", **CONTEXT
    )
    assert "is a part of the slot guide, not of prior; choices: Normal, Vamp" in refusal(
        "prior", "MeanField", **CONTEXT
    )
    assert "did you mean 'guide'" in refusal("guid", "MeanField")


def test_case_does_not_matter_to_a_member() -> None:
    assert resolve("guide", "meanfield") is MeanField and resolve("net", "mlp") is MLP
    assert build("guide", "meanField(net=conv)", **CONTEXT, channels=(8,)).net_args == {
        "channels": (8,)
    }


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        EntryPoint("Theirs", "fake_guides:MeanField", "g"),
        EntryPoint("Broken", "not_there:X", "g"),
    ]
    monkeypatch.setattr(
        lookup, "entry_points", lambda group: entries if group == "pyro_vae.guide" else []
    )
    assert resolve("guide", "Theirs") is MeanField
    assert "did you mean 'Theirs'" in refusal("guide", "Their")
    assert "not_there:X failed: ModuleNotFoundError" in refusal("guide", "Broken")
    assert describe("guide")[-1] == Part("Broken", "installed: not_there:X", "")


SOURCE = """
from torch import nn

class Mine:
    slot = "guide"

    def __init__(self, latent_dim, depth=1):
        self.latent_dim, self.depth = latent_dim, depth

class Prior:
    slot = "prior"

class Program(nn.Module):
    def __init__(self, latent_dim, depth=1):
        super().__init__()
        self.latent_dim, self.depth = latent_dim, depth

class Other:
    def __init__(self):
        raise AssertionError("called")

def program(x):
    return x

def factory(latent_dim=0, depth=0):
    raise AssertionError("called")

built = Mine(7)
module = Program(8)
other = object()
"""


def test_module_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reg_lab").mkdir()
    (tmp_path / "reg_lab" / "guides.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    for place in ("reg_lab.guides", f"{tmp_path}/reg_lab/guides.py"):
        mine = build("guide", f"{place}:Mine(depth=2)", **CONTEXT)
        assert (mine.latent_dim, mine.depth) == (2, 2)
        assert resolve("guide", f"{place}:Mine") is type(mine)  # one import, one class
        assert sys.modules[type(mine).__module__].Mine is type(mine)
        assert build("guide", f"{place}:program")("as it is") == "as it is"
        assert build("guide", f"{place}:Program", **CONTEXT).latent_dim == 2
        assert (
            build("guide", f"{place}:built").latent_dim,
            build("guide", f"{place}:module").latent_dim,
        ) == (7, 8)
        assert "did you mean 'Mine'?" in refusal("guide", f"{place}:Mime")
        assert "is a part of the slot prior, not of guide" in refusal("guide", f"{place}:Prior")
    assert build("model", f"Model(prior={tmp_path}/reg_lab/guides.py:Prior)").prior.slot == "prior"
    vamp = build("prior", f"Vamp(encoder={tmp_path}/reg_lab/guides.py:Mine(depth=4))", **CONTEXT)
    assert vamp.encoder.depth == 4


def test_what_is_no_part_is_refused_before_it_is_called(tmp_path: Path) -> None:
    """Arguments are given to a class of the slot alone; without any, a Pyro program serves where
    one is asked for.
    """
    (tmp_path / "parts.py").write_text(SOURCE)
    place = f"{tmp_path}/parts.py"
    for name in (
        "factory(depth=3)",
        "program(x=1)",
        "Program(depth=3)",
        "built(depth=3)",
        "module(1)",
    ):
        assert 'expected a class with slot = "guide"' in refusal(
            "guide", f"{place}:{name}", **CONTEXT
        ), name
    for name, word in {
        "Other": "a class without a slot",
        "other": "an object of the class object",
        "nn": "class module",
    }.items():
        assert word in refusal("guide", f"{place}:{name}", **CONTEXT)
    for name in (
        "program",
        "Program",
        "module",
        "factory(depth=3)",
        "Other",
        "other(1)",
        "program()",
    ):
        assert 'not a class with slot = "prior"' in refusal("prior", f"{place}:{name}", **CONTEXT)
        assert "not a subclass of torch.optim.Optimizer" in refusal(
            "optimizer", f"{place}:{name}", params=[], lr=1.0
        )
    for name in ("factory()", "program(1)", "Program()", "Other()", "built()", "other()"):
        assert "names its slot" in refusal(
            "guide", f"MeanField(latent_dim={place}:{name})", **CONTEXT
        )


def test_an_entry_point_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint("Theirs", "os:mkdir", "g")]
    monkeypatch.setattr(
        lookup, "entry_points", lambda group: entries if group == "pyro_vae.guide" else []
    )
    for spec in ("Theirs", "Theirs(x)"):
        assert "guide Theirs is a function, not a class" in refusal("guide", spec, **CONTEXT)


def test_faulty_modules_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert "no module 'reg_gone'" in refusal("guide", "reg_gone.guides:Mine")
    assert "no file" in refusal("guide", f"{tmp_path}/gone.py:Mine")
    faults = {
        "needs": "import reg_gone",
        "raises": "x = 1\nraise KeyError('a\\nb')",
        "syntax": "x = = 1",
    }
    for name, text in faults.items():
        (tmp_path / f"reg_{name}.py").write_text(text)
        for place in (f"reg_{name}", f"{tmp_path}/reg_{name}.py"):
            for _ in range(2):  # a failed import leaves nothing behind
                assert f"reg_{name}" in refusal("guide", f"{place}:Mine")
    assert "KeyError: 'a\\nb' (reg_raises.py, line 2)" in refusal(
        "guide", f"{tmp_path}/reg_raises.py:Mine"
    )


# Building


def test_fills_by_name_and_the_spec_wins() -> None:
    guide = build("guide", "MeanField", **CONTEXT, hidden=(3,), unrelated=1)
    assert (guide.event_shape, guide.latent_dim, guide.net, guide.net_args) == (
        (4,),
        2,
        "MLP",
        {"hidden": (3,)},
    )
    guide = build(
        "guide", "MeanField(latent_dim=7, hidden=(5,))", **CONTEXT, hidden=(3,), activation="tanh"
    )
    assert (guide.latent_dim, guide.net_args) == (7, {"hidden": (5,), "activation": "tanh"})
    assert build("prior", "Normal(5, 2.0)", **CONTEXT).latent_dim == 5
    assert build("prior", Normal, **CONTEXT, scale=3.0).scale == 3.0
    assert build("prior", Choice("Normal", (), {"scale": 4.0}), **CONTEXT).scale == 4.0


def test_an_instance_is_a_part_already() -> None:
    prior = Normal(2)
    assert build("prior", prior, **CONTEXT) is prior


def test_the_network_that_is_chosen_gives_the_arguments() -> None:
    guide = build("guide", "MeanField(net=Conv)", **CONTEXT, hidden=(3,), channels=(8,))
    assert (guide.net, guide.net_args) == ("Conv", {"channels": (8,)})
    for spec, net in (("MeanField", Conv), ("MeanField(net=Conv)", "MLP"), ("MeanField", "Conv")):
        assert build("guide", spec, **CONTEXT, net=net, channels=(8,)).net_args == {
            "channels": (8,)
        }
    assert "did you mean 'hidden'" in refusal("guide", "MeanField(hiden=(3,))", **CONTEXT)
    assert "unknown argument" in refusal("guide", "MeanField(net=Conv, hidden=(3,))", **CONTEXT)
    assert "did you mean 'Conv'" in refusal("guide", "MeanField(net=Comv)", **CONTEXT)


def test_a_network_written_as_a_call_is_spread_over_the_part() -> None:
    written = build(
        "guide",
        "MeanField(net=Conv(channels=(8,)))",
        **CONTEXT,
        net="MLP(hidden=(3,))",
        activation="relu",
    )
    assert (written.net, written.net_args) == ("Conv", {"channels": (8,), "activation": "relu"})
    offered = build(
        "guide", "MeanField(activation=tanh)", **CONTEXT, net="MLP(hidden=(3,), activation=silu)"
    )
    assert (offered.net, offered.net_args) == ("MLP", {"hidden": (3,), "activation": "tanh"})
    assert "given twice" in refusal(
        "guide", "MeanField(net=MLP(hidden=(3,)), hidden=(3,))", **CONTEXT
    )
    assert "write the arguments within net=MLP(3)" in refusal(
        "guide", "MeanField(net=MLP(3))", **CONTEXT
    )


def test_a_subclass_that_forwards_keywords_takes_the_network_too() -> None:
    guide = build("guide", "Forwards(depth=3)", **CONTEXT, net="Conv", channels=(8,))
    assert (guide.depth, guide.net, guide.net_args) == (3, "Conv", {"channels": (8,)})
    assert "did you mean 'depth'" in refusal("guide", "Forwards(dept=3)", **CONTEXT)


def test_nested_choices_are_built_with_the_same_context() -> None:
    model = build(
        "model", "Model(prior=Vamp(encoder=MeanField(hidden=(3,)), components=5))", **CONTEXT
    )
    assert isinstance(model.prior, Vamp) and model.prior.components == 5
    assert isinstance(model.prior.encoder, MeanField) and model.prior.encoder.net_args == {
        "hidden": (3,)
    }
    assert isinstance(build("model", "Model(prior=Normal)", **CONTEXT).prior, Normal)
    assert isinstance(build("model", "Model", **CONTEXT, prior="Normal(scale=2.0)").prior, Normal)
    pair = build("prior", "Vamp(encoder=(MeanField(), 'MeanField'))", **CONTEXT).encoder
    assert isinstance(pair[0], MeanField) and pair[1] == "MeanField"
    assert "did you mean 'MeanField'" in refusal("prior", "Vamp(encoder=MeanFeild())", **CONTEXT)
    assert "is a part of the slot guide" in refusal("model", "Model(prior=MeanField())", **CONTEXT)


def test_arguments_that_do_not_fit() -> None:
    message = refusal("prior", "Vamp(components=2)", latent_dim=2)
    assert (
        message.startswith("prior Vamp(components=2) needs encoder: ")
        and "known here: latent_dim" in message
    )
    assert "did you mean 'components'" in refusal(
        "prior", "Vamp(component=2)", latent_dim=2, encoder=None
    )
    assert "too many" in refusal("prior", "Normal(1, 2, 3)")
    assert "latent_dim is given twice" in refusal("prior", "Normal(1, latent_dim=3)")
    assert "prior Normal(scale=wide): scale must be a float" in refusal(
        "prior", "Normal(scale=wide)", **CONTEXT
    )
    assert refusal("prior", "Normal(scale=-1.0)", **CONTEXT) == "Normal(scale): must be positive"
    assert "abstract: give it build" in refusal("guide", Abstract)
    assert "is a part of the slot guide" in refusal("prior", MeanField, **CONTEXT)


def test_an_optimizer_is_a_part() -> None:
    import torch

    weights = [torch.zeros(2, requires_grad=True)]
    adam = build("optimizer", "Adam(eps=1e-4)", params=weights, lr=0.5)
    assert (adam.defaults["lr"], adam.defaults["eps"]) == (0.5, 1e-4)
    assert "optimizer Adam(lr=-1): Invalid learning rate" in refusal(
        "optimizer", "Adam(lr=-1)", params=weights
    )
    assert "not a subclass" in refusal("optimizer", "torch.optim:LBFGS", params=weights)


# Listing


def test_describe() -> None:
    assert describe("guide")[0] == Part(
        "MeanField", "Independent Gaussians.", "(event_shape, latent_dim, net=MLP, **net_args)"
    )
    assert describe("data") == [Part("digits", "The digits.", "")]
    assert describe("net")[1] == Part(
        "Conv", "", "(in_shape, out_shape, channels=(32,), activation=relu)"
    )
    assert all(part.summary and part.arguments for part in describe("optimizer"))


def test_importing_the_registry_does_not_import_torch() -> None:
    code = "import sys, pyro_vae.choices.registry as r; r.parse('IAF(depth=4)'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_program_is_not_imported() -> None:
    assert "unittest.__main__ is a program" in refusal("guide", "unittest.__main__:x")

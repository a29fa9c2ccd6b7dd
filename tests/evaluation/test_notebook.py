"""What an object shows in a notebook is what it prints."""

from __future__ import annotations

import pyro_vae as pv
from pyro_vae.runs.sweep import Sweep
from tests.support.training import QUICK, X, our_pair


def test_repr_is_the_printed_form_and_there_is_html() -> None:
    pair = our_pair()
    history = pv.fit(*pair, X, num_epochs=1, **QUICK)
    few, more = (
        pv.log_marginal(*pair, X, num_samples=k, progress=False, compile="off") for k in (5, 9)
    )
    compared = pv.compare({"few <draws>": few, "more": more})
    shown = [history, few, compared, pv.check_pair(*pair, X), pv.data.load("digits"), Sweep(())]
    shown += [compared.table(), pv.diagnose(*pair, X)]
    for each in shown:
        assert repr(each) == str(each) and "object at" not in repr(each)
        page = each._repr_html_()
        assert isinstance(page, str) and (page == "" or page.endswith(">"))
    assert "log p(x) ≥ " in few._repr_html_() and repr(history).startswith("3 steps")
    assert "<td>few &lt;draws&gt;</td>" in compared._repr_html_()
    assert "warning: the estimators differ" in compared._repr_html_()

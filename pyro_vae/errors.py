"""The exception for user errors, and helpers for its sentences ("did you mean …")."""

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: one sentence on what was wrong, what was expected, and what
    to do.

    The command line prints the sentence without a traceback, and exits with code 2.
    """


def did_you_mean(kind: str, name: str, choices: Iterable[str]) -> str:
    """One line for a name that is not among the choices, with the nearest choice (upper and lower
    case alike).

    >>> did_you_mean("guide", "MeanFeild", ["MeanField", "IAF"])
    "unknown guide 'MeanFeild'; did you mean 'MeanField'? choices: IAF, MeanField"
    """
    names = sorted(choices)
    near = [repr(choice) for choice in nearest(name, names)]
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {kind} {name!r}; {suggestion}choices: {', '.join(names) or 'none'}"


def nearest(name: str, choices: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The choices that ``name`` may mean: whole words (epochs: num_epochs), initials (lr:
    learning_rate), or the nearest spelling; upper and lower case alike.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    lower = name.lower()
    words = {each: re.split("[_-]", each) for each in by_lower}
    near = [lower] if lower in words else [e for e, parts in words.items() if lower in parts]
    near = near or [
        each
        for each, parts in words.items()
        if len(parts) > 1 and lower == "".join(part[:1] for part in parts)
    ]
    near = near or difflib.get_close_matches(lower, by_lower, n=1, cutoff=cutoff)
    return [by_lower[each] for each in near]


def first_line(error: BaseException) -> str:
    """An error in a clause: its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0][:160]}"


def one_line(error: object) -> str:
    """All that an error says, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def shortened(text: str, most: int = 300) -> str:
    """Without its middle where it is long: a path's ends tell most."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"

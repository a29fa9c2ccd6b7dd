"""The one exception for mistakes of the user's, and the sentence that suggests what was meant."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's: one clear line naming what was wrong, what was expected, and what to
    do.

    The command line prints the line without a traceback and exits with code 2.
    """


def did_you_mean(kind: str, name: str, choices: Iterable[str]) -> str:
    """One line for a name that is not among the choices, with the nearest choice (upper and lower
    case alike).

    >>> did_you_mean("guide", "MeanFeild", ["MeanField", "IAF"])
    "unknown guide 'MeanFeild'; did you mean 'MeanField'? choices: IAF, MeanField"
    """
    names = sorted(choices)
    by_lower = {choice.lower(): choice for choice in names}
    near = [
        lower for lower in by_lower if name.lower() in lower.split("_")
    ]  # a whole word of it: ELBO
    near = near or difflib.get_close_matches(name.lower(), by_lower, n=1)
    suggestion = (
        f"did you mean {' or '.join(repr(by_lower[lower]) for lower in near)}? " if near else ""
    )
    return f"unknown {kind} {name!r}; {suggestion}choices: {', '.join(names) or 'none'}"


def first_line(error: BaseException) -> str:
    """An error in a clause: its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0][:160]}"

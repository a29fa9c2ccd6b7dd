"""The text of another library's error, short enough for a sentence of ours."""


def one_line(error: Exception | None) -> str:
    return " ".join(str(error).split())[:300]

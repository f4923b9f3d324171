"""One way to refuse an unknown name: say which, and what the reader probably meant."""

import difflib
from collections.abc import Iterable


def check_name(field: str, value: str, valid: Iterable[str]) -> str:
    """Returns `value` when it is one of `valid`.

    Raises:
      ValueError: names the field, the value, the nearest valid name and all of them.
    """
    valid = tuple(valid)
    if value in valid:
        return value
    nearest = difflib.get_close_matches(str(value), valid, n=1, cutoff=0.0)[0]
    names = ", ".join(map(repr, valid))
    raise ValueError(f"{field}={value!r}: did you mean {nearest!r}? Valid are {names}")

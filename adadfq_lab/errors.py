"""UserError, for mistakes the user can fix; and helpers that bring foreign text into one harmless line."""

import re


class UserError(ValueError):
    """A mistake that the user can fix. The command line prints its text after `adadfq: ` and exits with status 2."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error; the error's type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# Control characters, marks that change the direction of text, line and paragraph separators, and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_UNPRINTABLE_IN_LINES = re.compile(_UNPRINTABLE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def printable(text: str, *, lines: bool = False) -> str:
    r"""`text` with every character that a terminal would act on written as an escape, such as \x1b; `lines` keeps newlines."""

    def escape(found: re.Match[str]) -> str:
        return found[0].encode("unicode_escape").decode()

    return (_UNPRINTABLE_IN_LINES if lines else _UNPRINTABLE).sub(escape, text)

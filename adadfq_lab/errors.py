"""The one exception a user's mistake raises: a sentence that says what is wrong and what to do; and others in one line."""


class UserError(ValueError):
    """Something the user can mend. The command line prints its text after `adadfq: ` and exits with status 2."""


def first_line(error: BaseException) -> str:
    """What somebody else's error says, in one line: its first, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

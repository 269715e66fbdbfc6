"""The one exception a user's mistake raises: a sentence that says what is wrong and what to do."""


class UserError(ValueError):
    """Something the user can mend. The command line prints its text after `adadfq: ` and exits with status 2."""

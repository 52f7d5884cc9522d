"""An error that a user can correct."""


class UserError(ValueError):
    """A bad input to a demo.

    Its message says, in one line, what is wrong and what would be right. The user sees no more.
    """

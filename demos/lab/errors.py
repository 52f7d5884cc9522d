"""What a user can mend, said in one line."""


class UserError(ValueError):
    """Bad input to a demo: the message says what is wrong and what would be right, and is all that the user sees."""

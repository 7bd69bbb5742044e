"""The error that a user can mend."""


class UserError(Exception):
    """A mistake that the user can mend. The message says what is wrong, where, and what to do; exit code 2."""


def first_line(error):
    """An exception in one line, for the brackets of a message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"

"""The error that a user can mend."""


class UserError(Exception):
    """A mistake that the user can mend. The message says what is wrong, where, and what to do; exit code 2."""


def not_deterministic(error):
    """torch's error about an operation that --deterministic cannot have, in a sentence that names it; None for any other error."""
    if not isinstance(error, RuntimeError) or "eterministic" not in str(error):
        return None
    return f"--deterministic: {str(error).partition(', but you set')[0].partition(chr(10))[0]}; run without the flag, or with another network or device"


def first_line(error):
    """An exception in one line, for the brackets of a message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"

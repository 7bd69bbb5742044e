"""The error that a user can mend, and the operating system's errors in words."""
import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


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


def os_error_in_words(error):
    """An OSError as a sentence with its file: a full disk, a folder that cannot be written or that is gone."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL:
        return f"{where}the disk is full, or a quota is ({error.strerror}); what was done is kept: make room, and the same command continues"
    if error.errno in FORBIDDEN:
        return f"{where}cannot be written or read ({error.strerror}); give yourself the right to, or choose another --name or folder"
    if error.errno == errno.ENOENT:
        return f"{where}is gone, was it removed under way? The same command writes again what is missing"
    return f"{where}{error.strerror or error}"

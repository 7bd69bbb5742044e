"""The error that a user can mend, and the operating system's errors in words."""
import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """A mistake that the user can mend: exit code 2. It says what is wrong, where, and what to do."""


def not_deterministic(error):
    """torch's error about an operation that --deterministic cannot have, as a sentence; None for others."""
    if not isinstance(error, RuntimeError) or "eterministic" not in str(error):
        return None
    what = str(error).partition(", but you set")[0].partition("\n")[0]
    return f"--deterministic: {what}; run without the flag, or with another network or device"


def first_line(error):
    """An exception in one line, for the brackets of a message."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def os_error_in_words(error):
    """An OSError as a sentence with its file: a full disk, a folder that is gone or cannot be written."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in FULL:
        return (f"{where}the disk is full, or a quota is ({error.strerror}); what was done is kept: "
                f"make room, and the same command continues")
    if error.errno in FORBIDDEN:
        return (f"{where}cannot be written or read ({error.strerror}); give yourself the right to, "
                f"or choose another --name or folder")
    if error.errno == errno.ENOENT:
        return f"{where}is gone, was it removed under way? The same command writes again what is missing"
    return f"{where}{error.strerror or error}"

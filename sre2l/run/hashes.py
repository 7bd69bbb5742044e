"""The hashes of an image or label folder's files, in one file beside it that `sha256sum -c` reads."""
import glob
import re
from pathlib import Path

from sre2l.run.errors import UserError
from sre2l.run.files import sidecar, write_bytes

AGAIN = "the command that wrote it does so again"  # how a file of a recorded set comes back


def changed(path, root):
    """The error for a file of a folder whose sha256 is not the recorded one."""
    return UserError(f"{path}: its sha256 is not the one in {sidecar(root, 'sha256')}; {AGAIN}")


def numbers_in(name):
    """The numbers in a name, to sort by."""
    return [int(number) for number in re.findall(r"\d+", name)]


def parse_line(line):
    """(name, sha256) of a line of a hash file; None where it is no hash of a file inside the folder.

    Such a name is relative, printable and without '..'."""
    match = re.fullmatch(r"([0-9a-f]{64})  ([^\\]+)", line)
    if match is None or not match[2].isprintable() or {"", ".", ".."} & set(match[2].split("/")):
        return None
    return match[2], match[1]


def read_hash_file(path, strict=False):
    """{'epoch_0/batch_0.tar': sha256}. The last line of a name counts. A line that is no hash of a file
    inside counts as not there, and so does the last line where a kill has torn it off.

    strict: raise UserError for such a line, and for a name that is there twice."""
    *lines, torn = Path(path).read_bytes().decode(errors="replace").split("\n")
    found = {}

    def fault(number, what, line):
        if strict:
            raise UserError(f"{path}: line {number} {what}: {line[:100]!r}; "
                            f"the same command as before mends it")

    for number, line in enumerate(lines, 1):
        parsed = parse_line(line)
        if parsed is None:
            fault(number, "is no hash of a file inside", line)
            continue
        if parsed[0] in found:
            fault(number, "names a file for the second time", line)
        found[parsed[0]] = parsed[1]
    if torn:  # whatever it holds, its end is missing
        fault(len(lines) + 1, "is torn", torn)
    return found


def older_hash_files(root):
    """The files of hashes, one a process, that an interrupted run of an older version has left."""
    path = sidecar(root, "sha256")
    return sorted(part for part in path.parent.glob(f"{glob.escape(path.name)}.*") if part.suffix != ".tmp")


def read_hashes(root, strict=False):
    """{path in it: recorded hash} of the files of an image or label folder.

    strict: of a folder that nobody writes to, in which every line must be one."""
    path = sidecar(root, "sha256")
    found = {}
    for part in older_hash_files(root) + [path] * path.exists():
        found |= read_hash_file(part, strict)
    return found


def sort_hashes(root):
    """Write the hash file anew, each name once, in the order of its numbers, with what older files hold.

    The caller holds the lock."""
    path = sidecar(root, "sha256")
    hashes = read_hashes(root)
    text = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes, key=numbers_in)).encode()
    if not path.exists() or text != path.read_bytes():  # of labels that are derived it is empty
        write_bytes(path, text)
    for part in older_hash_files(root):
        part.unlink()

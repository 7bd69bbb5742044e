"""The hash of every file of an image or label folder, in one file beside it that `sha256sum -c` reads."""
import glob
import re
from pathlib import Path

from sre2l.run.errors import UserError
from sre2l.run.files import sidecar, write_bytes


def numbers_in(name):
    """The numbers in a name, to sort by."""
    return [int(number) for number in re.findall(r"\d+", name)]


def is_inside(name):
    """Is a name in a hash file that of a file inside the folder: relative, without '..', printable?"""
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def parse_line(line):
    """(name, sha256) of a line of a hash file; None where it is no hash of a file inside the folder."""
    match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
    return (match[2], match[1]) if match and is_inside(match[2]) else None


def read_hash_file(path, strict=False):
    """{'epoch_0/batch_0.tar': sha256}. The last line of a name counts. A line that is no hash of a file
    inside counts as not there, and so does the last line where a kill has torn it off.

    strict: raise UserError for such a line, and for a name that is there twice."""
    *lines, torn = Path(path).read_bytes().decode(errors="replace").split("\n")
    found = {}
    fault = None
    for number, line in enumerate(lines, 1):
        parsed = parse_line(line)
        if parsed is None:
            fault = fault or (number, "is no hash of a file inside", line)
            continue
        if parsed[0] in found:
            fault = fault or (number, "names a file for the second time", line)
        found[parsed[0]] = parsed[1]
    if torn:  # whatever it holds, its end is missing
        fault = fault or (len(lines) + 1, "is torn", torn)

    if strict and fault:
        number, what, line = fault
        raise UserError(f"{path}: line {number} {what}: {line[:100]!r}; the same command as before mends it")
    return found


def read_hashes(root, strict=False):
    """The recorded hash of each file of an image or label folder, by its path in it; {} where none is
    recorded.

    strict: of a folder that nobody writes to, in which every line must be one."""
    path = sidecar(root, "sha256")
    # An interrupted run of an older version has left a file of hashes for each process.
    older = [part for part in path.parent.glob(f"{glob.escape(path.name)}.*") if part.suffix != ".tmp"]
    found = {}
    for part in sorted(older) + [path] * path.exists():
        found |= read_hash_file(part, strict)
    return found


def sort_hashes(root):
    """Write the hash file anew, each name once, in the order of its numbers. The caller holds the lock."""
    path = sidecar(root, "sha256")
    hashes = read_hashes(root)
    text = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes, key=numbers_in)).encode()
    if text != (path.read_bytes() if path.exists() else b""):
        write_bytes(path, text)

"""Files that are there whole or not at all, also after a kill or a power cut."""
import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
from pathlib import Path

from sre2l.run.errors import UserError

CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)  # of a file system that cannot, or need not


def sidecar(root, suffix):
    """The path beside a folder that tells about it: runs/x/labels, 'log.txt' -> runs/x/labels.log.txt."""
    root = Path(os.path.abspath(root))  # a trailing slash or '..' changes nothing
    return root.with_name(f"{root.name}.{suffix}")


@contextlib.contextmanager
def naming(path):
    """Within this, an OSError gets the name of its file, which the error of a write does not know."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def sync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(handle)


def make_folder(folder, within=None):
    """Make a folder and those above it, each on the disk.

    within: a folder that must be there already. A run's folder that was removed under way shall not come back
    with the few files of a thread that had not heard of it: that is a FileNotFoundError."""
    if folder.is_dir():
        return
    if folder == within:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    make_folder(folder.parent, within)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def resolved(root):
    """The folder that a link leads to; any other folder itself."""
    return Path(os.path.realpath(root) if os.path.islink(root) else root)


@contextlib.contextmanager
def atomic(path, root=None):
    """Write to a temporary name, sync and rename: `with atomic(path) as tmp: save(tmp)`.

    root: the image or label folder that the file belongs to. The temporary file then lies beside that folder,
    because the released reader counts everything in it; where the folder is a link, beside its target, which
    may be on another disk."""
    path = Path(os.path.abspath(path))
    tmp = sidecar(resolved(root) if root else path, f"{secrets.token_hex(6)}.tmp")
    make_folder(path.parent, within=sidecar(root, "").parent if root else None)
    try:
        yield tmp
        sync(tmp)
        os.replace(tmp, path)
        sync(path.parent)
    finally:
        tmp.unlink(missing_ok=True)


def write_bytes(path, data, root=None):
    """Write a file whole; root as in `atomic`."""
    with atomic(path, root) as tmp, open(tmp, "wb") as file, naming(path):
        file.write(data)
        file.flush()


def drop_torn_line(path):
    """Remove the part of a line that a killed process left at the end of a file, where there is one."""
    if not os.path.exists(path):
        return
    with Path(path).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            file.truncate(os.pread(file.fileno(), size, 0).rfind(b"\n") + 1)


def last_line(path):
    """What a log says last; '-' for an empty one."""
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "-"


def append_line(path, text):
    """Append lines in one write and wait until they are on the disk. text ends with a newline.

    Of several processes the caller is alone with the file."""
    is_new = not os.path.exists(path)
    drop_torn_line(path)
    data = text.encode()
    with open(path, "ab", buffering=0) as file, naming(path):
        if file.write(data) < len(data):  # the disk filled within it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    if is_new:
        sync(Path(path).parent)


def save_torch(path, value):
    """torch.save by way of memory: equal values give equal bytes, whatever the file's name."""
    import torch  # not above: it takes seconds, and the queue of results/ never saves a tensor
    data = io.BytesIO()
    torch.save(value, data)
    write_bytes(path, data.getbuffer())


def write_json(path, value):
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path):
    """The JSON object in a file. Raises UserError for anything else."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


def as_json(settings):
    """The same values as JSON gives them back, so that settings compare equal after a round trip."""
    return json.loads(json.dumps(settings, default=str))


def hash_json(value):
    """sha256 of a value of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(as_json(value), sort_keys=True).encode()).hexdigest()


def hash_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Settings travel with results: an output folder remembers the settings it was made with, refuses others, and can be started afresh."""
import contextlib
import os
import re
from pathlib import Path

from sre2l.run.processes import barrier, rank
from sre2l.run.errors import UserError
from sre2l.run.files import TOKEN, alone_in, as_json, sidecar, hash_file, hash_json, read_json, write_json

EVENTS = r"events\.out\.tfevents\.[^/]+"
LOGS = r"args\.json|log\.txt|metrics(\.rank\d+)?\.jsonl"
RECORDS = rf"manifest\.json|sha256(\.{TOKEN})?|{LOGS}"
BESIDE = {"images": rf"{RECORDS}|png|(unit\d+\.)?(gif|snapshots)|tensorboard|unit\d+(\.ipc\d+)?\.state", "labels": RECORDS}
LAYOUT = {"images": (r"new\d+", r"class\d+_id\d+\.(jpg|png)"), "labels": (r"epoch_\d+", r"batch_\d+\.tar")}  # folders, and the files in them
INSIDE = {**{kind: "/".join(names) for kind, names in LAYOUT.items()},
          "teacher": rf"(teacher|checkpoint)\.pth|tensorboard/{EVENTS}|settings\.json|\.folder\.lock|{LOGS}",
          "student": rf"seed\d+/checkpoint\.pth|tensorboard/seed\d+/{EVENTS}|report\.html|(settings|results)\.json|\.folder\.lock|{LOGS}"}

FOUND = ("teacher", "engine", "size", "input_size", "num_classes", "mean", "std", "stem", "eval_resize")  # settings that a run may find otherwise than a plan


def read_record(path):
    """A manifest or settings.json -> {"settings": {...}, ...}; raises UserError for one that is not as it was written."""
    record = read_json(path)
    if not isinstance(record.get("settings"), dict) or record.get("sha256") != hash_json({k: v for k, v in record.items() if k != "sha256"}):
        raise UserError(f"{path}: not as a run wrote it (its own sha256 is missing or another); "
                        f"bring the file back, or delete it with the output it belongs to")
    return record


def write_record(path, record):
    record = {key: value for key, value in as_json(record).items() if key != "sha256" and value is not None}
    write_json(path, {**record, "sha256": hash_json(record)})


def recorded(path, key=None):
    """The settings at `path`, or one of them; None where there is no such file or setting."""
    settings = read_record(path)["settings"] if Path(path).exists() else None
    return settings if settings is None or key is None else settings.get(key)


def check_dataset(root, dataset):
    """Raise UserError where images or labels were made for another data set, by the manifest beside their folder; without one nothing tells."""
    there = recorded(sidecar(root, "manifest.json"), "dataset")
    if there not in (None, dataset):
        raise UserError(f"{root}: was made for {there}, this run is of {dataset}; give the launcher {there}, or another --name or folder")


def refuse_others(path, stored, settings, keys):
    """Raise UserError where two outputs' settings differ in one of these keys."""
    keys = [key for key in sorted(keys) if stored.get(key) != settings.get(key)]
    if keys:
        differ = "; ".join(f"{key}: there {stored.get(key)!r}, here {settings.get(key)!r}" for key in keys)
        raise UserError(f"{path}: this output belongs to a run with other settings ({differ}). "
                        f"Choose another --name or output folder, or start afresh with --overwrite, which deletes it")


def check_plan(path, settings, free=(), switches=()):
    """For --dry-run: raise UserError as keep_settings would, as far as the settings are known before anything is loaded. switches: settings of which
    None is a value, off."""
    settings, stored = as_json(settings), recorded(path) or {}
    known = [key for key, value in settings.items() if value is not None and key in stored and key not in (*free, *FOUND)]
    refuse_others(path, stored, settings, [*known, *(switches if stored else ())])


def keep_settings(path, settings, free=(), command=None):
    """Tie an output to its settings: the first run writes them to `path`, a later one must agree except in `free` keys, which take the later
    value unless that is None. Of several processes the first does it while the others wait.

    command: of a run that starts afresh (start_afresh), until `finish`."""
    if rank() > 0:
        return barrier()
    settings, record = as_json(settings), {}
    with alone_in(Path(path).parent):  # of two runs that begin at once, the second sees what the first wrote
        if Path(path).exists():
            record = read_record(path)
            stored = record["settings"]
            settings |= {key: stored[key] for key in free if settings.get(key) is None and key in stored}
            refuse_others(path, stored, settings, {*stored, *settings} - {*free})
        write_record(path, {"settings": settings, "afresh_by": record.get("afresh_by") or command})
    barrier()


def finish(path, listing=None):
    """The run is complete: --overwrite would now start afresh once more. listing: the file of hashes beside a manifest; the two then know
    that they belong together, until another run begins."""
    if rank() == 0:
        with alone_in(Path(path).parent):
            write_record(path, {**read_record(path), "afresh_by": None, "hashes": listing and hash_file(listing)})


def refuse_unclaimed(root):
    """Raise UserError for a folder with contents that no manifest vouches for: images or labels of other origin."""
    if not sidecar(root, "manifest.json").exists() and Path(root).is_dir() and any(Path(root).iterdir()):
        raise UserError(f"{root}: holds files but no manifest stands beside it, perhaps a published set; choose another folder, "
                        f"or bring {sidecar(root, 'manifest.json')} back")


def outputs_of(root, kind):
    """-> (the files of an output folder, those beside it that belong to it). Raises UserError for anything else inside, links to folders included."""
    files = sorted(Path(folder) / name for folder, folders, names in os.walk(root) for name in names + folders
                   if name in names or os.path.islink(os.path.join(folder, name)))
    stray = [path for path in files if not re.fullmatch(INSIDE[kind], path.relative_to(root).as_posix())]
    if stray:
        raise UserError(f"{stray[0]}: no file of a run, so --overwrite deletes nothing; move it away first")
    around = []
    for path in root.parent.iterdir() if kind in BESIDE else ():
        if path.name.startswith(f"{root.name}.") and re.fullmatch(BESIDE[kind], path.name.removeprefix(f"{root.name}.")):
            around += sorted({*path.glob("iteration_*.png"), *path.glob("unit*/events.out.tfevents.*")}) if path.is_dir() else [path]
    return files, around


def is_under_way(record, command):
    """Whether a run that this command (a hash of its arguments) began with --overwrite is not finished: the same command continues it."""
    return read_json(record).get("afresh_by") == command


def planned_deletion(record, root, kind, command):
    """What start_afresh would delete, for --dry-run: how many files of the folder, which beside it, bytes of all. Raises UserError as it would."""
    root, record = (Path(os.path.abspath(path)) for path in (root, record))
    if not record.exists() and kind in BESIDE:
        refuse_unclaimed(root)
    files, around = outputs_of(root, kind) if record.exists() and not is_under_way(record, command) else ([], [])
    return {"folder": str(root), "files": len(files), "beside": sorted(path.relative_to(root.parent).as_posix() for path in around),
            "bytes": sum(path.lstat().st_size for path in files + around)}


def start_afresh(record, root, kind, command):
    """--overwrite: say what an earlier run left in `root` and delete it. The record of its settings goes last, since contents without one are
    refused: also where a kill comes in between, the same command goes on. kind: of INSIDE.

    A run that the same `command` began so, and that is not finished, is left alone: the same command continues.
    Raises UserError for contents that no run vouches for."""
    root, record = (Path(os.path.abspath(path)) for path in (root, record))
    if rank() == 0 and record.exists():
        if is_under_way(record, command):
            print(f"--overwrite: {root} was started afresh by this command and is not finished; it continues")
        else:
            files, around = outputs_of(root, kind)
            num_bytes = sum(path.lstat().st_size for path in files + around)
            print(f"--overwrite: deleting {root}: {len(files)} files in it and {len(around)} beside it, {num_bytes / 1e6:.1f} MB", flush=True)
            for path in {*files, *around} - {record}:
                path.unlink()
            for folder, _, _ in os.walk(root, topdown=False):
                if Path(folder) != root:
                    os.rmdir(folder)
            for folder in sorted({path.parent for path in around} - {root.parent}, reverse=True):  # of pictures and event files, those within others first
                with contextlib.suppress(OSError):  # other files in it
                    os.removedirs(folder)
            record.unlink()
            if root.is_dir() and not root.is_symlink():
                root.rmdir()
    elif rank() == 0 and kind in BESIDE:
        refuse_unclaimed(root)
    barrier()

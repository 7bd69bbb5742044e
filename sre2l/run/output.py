"""An output folder that remembers how it was made: one writer, one set of settings, whole files."""
import contextlib
import glob
import hashlib
import json
import os
import re
from pathlib import Path

from tqdm import tqdm

from sre2l.run.ahead import in_order
from sre2l.run.errors import UserError
from sre2l.run.files import (
    append_line,
    as_json,
    hash_file,
    hash_json,
    read_json,
    resolved,
    sidecar,
    write_bytes,
    write_json,
)
from sre2l.run.hashes import numbers_in, older_hash_files, read_hashes, sort_hashes
from sre2l.run.layout import BESIDE, INSIDE, LAYOUT, find_files, scan
from sre2l.run.lock import END, EVERYTHING, lock_of
from sre2l.run.log import RunLog
from sre2l.run.processes import barrier, check_launch_has_id, launch_id, rank, world_size

# Settings that a run may find otherwise than its plan says, by the teacher's checkpoint or the labels'
# manifest.
FOUND_LATER = ("teacher", "engine", "size", "input_size", "num_classes", "mean", "std", "stem", "eval_resize")


def read_record(path):
    """A manifest.json or settings.json -> {"settings": ...}. Raises UserError if no run wrote it so."""
    record = read_json(path)
    content = {key: value for key, value in record.items() if key != "sha256"}
    if not isinstance(record.get("settings"), dict) or record.get("sha256") != hash_json(content):
        raise UserError(f"{path}: not as a run wrote it (its own sha256 is missing or another); "
                        f"bring the file back, or delete it with the output it belongs to")
    return record


def write_record(path, record):
    record = {key: value for key, value in as_json(record).items() if key != "sha256" and value is not None}
    write_json(path, {**record, "sha256": hash_json(record)})


def recorded(path, key=None):
    """The settings in the record at `path`, or one of them; None where there is no such file or setting."""
    settings = read_record(path)["settings"] if Path(path).exists() else None
    return settings if settings is None or key is None else settings.get(key)


def check_dataset(root, dataset):
    """Raise UserError where images or labels were made for another data set, by their manifest."""
    there = recorded(sidecar(root, "manifest.json"), "dataset")
    if there not in (None, dataset):
        raise UserError(f"{root}: was made for {there}, this run is of {dataset}; "
                        f"give the launcher {there}, or another --name or folder")


def remove_empty_folders(root):
    """Remove a folder and those below it, as far as nothing is in them. A link stays."""
    for folder, _, _ in os.walk(root, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


class OutputFolder:
    """One output folder of a stage. Every stage takes the same steps in the same order:

        folder = OutputFolder(root, "images", args.overwrite)   # touches nothing
        folder.dry_run(settings, images=100)                    # --dry-run ends here
        settings = folder.begin(settings, part)                 # lock, --overwrite, refusals, record
        log = folder.open_log(args, device)
        names = folder.missing(names)                           # what is there as recorded is kept; recover
                                                                # asks before `begin` as well, for its engine
        folder.write({name: data})                              # hashes first, then each file whole
        folder.finish(names)                                    # sorts the hash file, ties it to the record

    kind: 'images' or 'labels', whose records stand beside the folder; 'teacher' or 'student', whose records
    stand in it. overwrite: delete what an earlier run left. defaults: {setting: value} that count where a
    folder does not record a setting. free: settings that may differ between the runs that fill one folder;
    the later value counts unless it is None."""

    def __init__(self, root, kind, overwrite=False, defaults=None, free=()):
        self.root = Path(os.path.abspath(root))
        self.kind = kind
        self.is_set = kind in LAYOUT  # of images or labels
        self.overwrite = overwrite
        self.defaults = as_json(defaults or {})
        self.free = free
        self.record_path = self.path("manifest.json" if self.is_set else "settings.json")
        self.lock = None  # from `begin` on
        self.own = set()  # the names that this process has looked at or written

    def path(self, name):
        """Where one of the folder's records is, such as 'log.txt'."""
        return sidecar(self.root, name) if self.is_set else self.root / name

    # -- what an earlier run left

    def earlier_settings(self):
        """The settings of the run that this one continues; None where there is none or it will be deleted.

        What another process of this launch has begun is continued also with --overwrite."""
        if not self.record_path.exists():
            return None
        record = read_record(self.record_path)
        is_of_this_launch = launch_id() is not None and record.get("launch") == launch_id()
        return None if self.overwrite and not is_of_this_launch else record["settings"]

    def deletes(self):
        """Is there an earlier run that --overwrite deletes?"""
        return self.record_path.exists() and self.earlier_settings() is None

    def refuse_others(self, there, here, keys):
        """Raise UserError where two sets of settings differ in one of these keys. None means the default."""

        def value(settings, key):
            found = settings.get(key)
            return without_none(self.defaults.get(key) if found is None else found)

        keys = [key for key in sorted(keys) if value(there, key) != value(here, key)]
        if not keys:
            return
        differ = "; ".join(difference for key in keys
                           for difference in describe_difference(key, there.get(key), here.get(key)))
        hint = ""
        if "epochs" in keys:
            hint = " The learning rate falls over all epochs, so more of them are a run of their own."
        if "arch_sha256" in differ or "model_sha256" in differ:
            hint += " The file of the network has been edited since: bring it back."
        other = "--name or output folder"
        if self.kind == "student":
            other = f"folder with --output-dir {self.root.parent}/student_2"
        raise UserError(f"{self.record_path}: this output belongs to a run with other settings "
                        f"({differ}).{hint} Choose another {other}, or start afresh with --overwrite, which "
                        f"deletes it")

    def refuse_unclaimed(self):
        """Raise UserError for images or labels without a record: they are of other origin."""
        if self.is_set and not self.record_path.exists() and self.root.is_dir() and any(self.root.iterdir()):
            raise UserError(f"{self.root}: holds files but no manifest stands beside it, perhaps a published "
                            f"set; choose another folder, or bring {self.record_path} back")

    def outputs(self):
        """-> (the files in the folder, those beside it). Raises UserError for a file that no stage writes."""
        inside = find_files(self.root)
        for path in inside:
            if not re.fullmatch(INSIDE[self.kind], path.relative_to(self.root).as_posix()):
                raise UserError(f"{path}: no file of a run, so --overwrite deletes nothing; "
                                f"move it away first")
        beside = []
        for path in self.root.parent.iterdir() if self.is_set else ():
            suffix = path.name.removeprefix(f"{self.root.name}.")
            if suffix == path.name or not re.fullmatch(BESIDE[self.kind], suffix):
                continue
            pictures = sorted(path.glob("iteration_*.png"))
            events = sorted(path.glob("unit*/events.out.tfevents.*"))
            beside += [path] if path.is_file() else pictures + events
        return inside, beside

    # -- the steps of a run

    def dry_run(self, settings, **plan):
        """--dry-run: print the settings and what would be written and deleted, as JSON. Raises UserError as
        `begin` would, as far as the settings are known before anything is loaded."""
        plan |= {"output": str(self.root), "deletes": None}
        if self.overwrite:
            self.refuse_unclaimed()
            inside, beside = self.outputs() if self.record_path.exists() else ([], [])
            names = sorted(path.relative_to(self.root.parent).as_posix() for path in beside)
            size = num_bytes(inside + beside)
            plan["deletes"] = {"folder": str(self.root), "files": len(inside), "beside": names, "bytes": size}
        else:
            self.refuse_planned(settings)
        print_plan(settings, **plan)

    def refuse_planned(self, settings):
        """Raise UserError as `begin` would, as far as the settings are known before anything is loaded."""
        settings = as_json(settings)
        there = self.earlier_settings()
        if there is None or self.overwrite:
            return
        # A setting that is left out has its default; one that is None is not known before the run.
        unknown = {key for key, value in settings.items() if value is None}
        known = {*there, *self.defaults} & {*settings, *self.defaults} - unknown
        self.refuse_others(there, settings, known - {*self.free, *FOUND_LATER})

    def begin(self, settings, part=None, chosen=None):
        """Take the lock, delete with --overwrite, refuse other settings, record these -> those on record.

        part: the ranges (first, stop) of flat image indices that this process writes, of a student those of
        its seeds; None for everything, which the processes of one launch share. chosen: settings that the run
        has chosen by itself; recorded ones win. Of the processes that train one network the first begins, the
        others wait."""
        # The first process has written the record by the time this one passes the barrier.
        if not self.is_set and rank() > 0:
            barrier()
            return self.earlier_settings()
        lock = self.lock = lock_of(self.root)
        if part == []:  # this process writes nothing, so it records and deletes nothing either
            return self.agree(self.earlier_settings(), as_json(settings), as_json(chosen or {}))
        if self.overwrite:
            check_launch_has_id()
        # --overwrite needs the whole folder, for it deletes what others write.
        lock.wait_until_free(EVERYTHING if self.deletes() else own_share(part))
        with lock.moment():
            # One moment under the lock: of two runs that begin together the second sees what the first has
            # recorded.
            there = self.earlier_settings()
            if self.deletes():
                lock.take(EVERYTHING)
                self.delete()
                lock.release()
            self.refuse_unclaimed()
            if self.record_path.exists() and "hashes" in read_record(self.record_path):
                self.read_hashes()  # refuses before the record is written anew, without what it tells of them
            if lock.is_supported and lock.try_ranges(EVERYTHING):  # nobody else writes here now
                self.clear_leftovers()
                lock.release()
            # From here on this process's own part is locked, until `finish` or its end.
            lock.take(own_share(part))
            settings = self.agree(there, as_json(settings), as_json(chosen or {}))
            write_record(self.record_path, {"settings": settings, "launch": launch_id()})
        self.overwrite = False  # done: from here on this run continues what it has begun
        if not self.is_set:
            barrier()
        return settings

    def agree(self, there, here, chosen):
        """The settings to record: `here`, unless they contradict those `there` (None: no run was here)."""
        if there is None:
            return {**here, **chosen}
        here = {**here, **{key: there.get(key, value) for key, value in chosen.items()}}
        for key in self.free:
            if here.get(key) is None and key in there:
                here[key] = there[key]
        self.refuse_others(there, here, {*there, *here} - {*self.free})
        return here

    def delete(self):
        """--overwrite: say what an earlier run left and delete it. The record goes last, since contents
        without one are refused: where a kill comes in between, the same command deletes the rest."""
        inside, beside = self.outputs()
        size = num_bytes(inside + beside) / 1e6
        what = f"{len(inside)} files in it and {len(beside)} beside it, {size:.1f} MB"
        print(f"--overwrite: deleting {self.root}: {what}; to continue this run after an interruption, "
              f"leave --overwrite away", flush=True)
        for path in {*inside, *beside} - {self.record_path}:
            path.unlink()
        tops = {self.root.parent / path.relative_to(self.root.parent).parts[0] for path in beside}
        for folder in (self.root, *sorted(tops)):  # beside it: folders of pictures and of event files
            remove_empty_folders(folder)
        self.record_path.unlink()
        remove_empty_folders(self.root)  # a teacher's record lay in it

    def clear_leftovers(self):
        """Remove the temporary files of killed runs. Of what older versions left, take over the hashes, in a
        file for each process, and remove the files by which processes claimed a folder."""
        if not self.is_set:
            for path in self.root.rglob("*.tmp"):
                path.unlink()
            return
        # Other folders may have names that begin alike. A link's files are written beside its target.
        left = rf"(({BESIDE[self.kind]})\.)?[0-9a-f]{{12}}\.tmp|[^/]+\.\d+\.\d+\.claim"
        for root in {self.root, resolved(self.root)}:
            for path in root.parent.glob(f"{glob.escape(root.name)}.*"):
                if re.fullmatch(left, path.name.removeprefix(f"{root.name}.")):
                    path.unlink(missing_ok=True)  # the contact sheet's goes without a lock
        if older_hash_files(self.root):
            sort_hashes(self.root)

    def open_log(self, args, device):
        """-> the RunLog of this folder. Each process computes other images and labels, but one network."""
        return RunLog(self.path, vars(args), device, sliced=self.is_set)

    def missing(self, names, threads=4):
        """The names, paths in the folder, whose file is not there as it was recorded; reads every byte of
        those that are. Before `begin` has deleted what --overwrite deletes, all are missing.

        Raises UserError where files are there and no hash at all."""
        self.own.update(names)
        if self.overwrite:
            return list(names)
        self.refuse_unclaimed()
        return self.not_intact(names, self.read_hashes(), threads)

    def read_hashes(self):
        """-> {name: hash} of an image or label folder. Raises UserError where files are there and no hash at
        all: nobody wants them made anew."""
        hashes = read_hashes(self.root)
        if not hashes:
            there = [path.relative_to(self.root).as_posix() for path in find_files(self.root)]
            if any(re.fullmatch(INSIDE[self.kind], name) for name in there):
                raise UserError(f"{self.path('sha256')}: the hashes of the {self.kind} in {self.root} are "
                                f"gone; bring the file back, or start afresh with --overwrite")
        return hashes

    def not_intact(self, names, hashes, threads=4):
        """Those of `names` whose file is not there with the bytes that its hash tells of; reads them all."""

        def is_intact(name):
            path = self.root / name
            is_own = path.exists() and (self.kind == "labels" or not path.is_symlink())
            return is_own and hashes.get(name) == hash_file(path)

        looks = in_order(is_intact, names, threads)
        bar = tqdm(looks, f"checking {self.kind}", total=len(names), disable=None, leave=False)
        return [name for intact, name in zip(bar, names) if not intact]

    def write(self, files):
        """Write files {path in the folder: bytes}. Hashes come first, so a kill leaves known files alone."""
        self.own.update(files)
        lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
        with self.lock.moment():
            append_line(self.path("sha256"), "".join(lines))
        for name, data in files.items():
            write_bytes(self.root / name, data, self.root)

    def finish(self, names):
        """End this process's part of an image or label folder -> whether all of `names` is there by now.

        Of the processes of one launch only the last to end finds it so. Whoever is the last writer of the
        folder sorts the hash file and ties the record to it. Raises UserError where files of this process's
        own part are gone, or where the finished folder holds a file that is none of the set."""
        if self.overwrite:  # this process had nothing to write, and the others have yet to delete
            return False
        with self.lock.moment():
            self.lock.release()
            is_last = self.lock.try_ranges(EVERYTHING) and (self.lock.is_supported or world_size() == 1)
            missing = self.absent(names, thoroughly=is_last)
            if is_last and not missing:
                # The record and the hash file belong together until another run begins.
                sort_hashes(self.root)
                settings = read_record(self.record_path)["settings"]
                digest = hash_file(self.path("sha256"))
                write_record(self.record_path, {"settings": settings, "hashes": digest})
            self.lock.release()

        # What another process has to write is no fault of this one.
        gone = len(missing & self.own)
        if gone:
            raise UserError(f"{self.root}: {gone} of its files are not there any more, removed under way? "
                            f"The same command writes them again")
        is_complete = not missing and (is_last or world_size() == 1)
        if is_complete:
            self.refuse_strays()
        return is_complete

    def absent(self, names, thoroughly):
        """Those of `names` that have no hash or no file; thoroughly: or, if others wrote them, other bytes.

        A process of this launch that has not begun yet is not seen by its lock, and would find those."""
        hashes = read_hashes(self.root)
        absent = {name for name in names if name not in hashes or not (self.root / name).exists()}
        if thoroughly and not absent:
            absent.update(self.not_intact([name for name in names if name not in self.own], hashes))
        return absent

    def refuse_strays(self):
        """Raise UserError for the first entry of the finished folder that is no file of the set."""
        sizes, folders, stray = scan(self.root, self.kind)
        hashes = read_hashes(self.root)  # after the scan: others record a file before they write it
        used = {name.partition("/")[0] for name in hashes}
        stray += sorted(sizes.keys() - hashes.keys(), key=numbers_in) + sorted(set(folders) - used)
        if stray:
            raise UserError(f"{self.root}/{stray[0]}: all is done, but this is no file of the set, and the "
                            f"next stage would refuse it; move it away")


def describe_difference(key, there, here):
    """How two values of a setting differ, a phrase for each: of dictionaries the keys that do."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return [f"{key}: there {shorten(there)!r}, here {shorten(here)!r}"]
    keys = [part for part in sorted({*there, *here}) if there.get(part) != here.get(part)]
    return [phrase for part in keys
            for phrase in describe_difference(f"{key}.{part}", there.get(part), here.get(part))]


def shorten(value):
    """A setting as a message shows it: of a hash the first eight digits."""
    is_hash = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return f"{value[:8]}..." if is_hash else value


def without_none(value):
    """A setting in which what is None counts as not there."""
    if not isinstance(value, dict):
        return value
    return {key: without_none(part) for key, part in value.items() if part is not None}


def own_share(part):
    """The ranges that this process locks. What the processes of one launch share is cut between them."""
    if part is not None:
        return part
    is_last = rank() == world_size() - 1
    return ((rank(), END if is_last else rank() + 1),)


def num_bytes(paths):
    return sum(path.lstat().st_size for path in paths)


def print_plan(settings, **plan):
    """--dry-run: the resolved settings and what the run would write, as JSON on standard output."""
    shown = dict(settings)
    if shown.get("classes"):
        classes = shown["classes"]
        shown["classes"] = f"{classes[0]} to {classes[-1]}, {len(classes)} in all"
    print(json.dumps(as_json({"settings": shown, **plan}), indent=1))

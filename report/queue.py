"""The queue: the jobs of results/queue.json side by side, stopped in time, continued by the same command.

Run: sh results/queue.sh --minutes 30      (no --minutes: until all is done)
Result: what the jobs write, and the state and the log of each in runs/queue/. A failed job makes exit code 1.
"""
import fcntl
import fnmatch
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from report.jobs import STATE, Job, has_gpu, print_plan, read_jobs, why_waiting
from report.packing import pack
from sre2l.run.errors import UserError, os_error_in_words
from sre2l.run.files import make_folder
from sre2l.run.flags import Parser, number
from sre2l.run.limits import usable_cores
from sre2l.run.paths import ROOT

SIDE_BY_SIDE = 8   # jobs on a GPU: small students are launch-bound, eight take as long as one on an H200
SAVE_SEC = 30      # before the end of --minutes jobs are asked to save and end, or a third of the time before
LEAST_SEC = 60     # a job that does not fit into the time is started for no less
STATUS_SEC = 300   # between two lines about all jobs
LOOK_SEC = 0.1
# A job is a shell in a process group of its own. Its standard input is a pipe of the queue's: where the queue
# is killed, the pipe ends, and a watcher asks the group to save and end. The shell itself waits for its
# command in any case, so that the job has ended when it has.
SCRIPT = """exec 3<&0 </dev/null
{ read -r _ <&3; kill -TERM 0; } &
watcher=$!
trap 'kill $watcher 2>/dev/null || :' EXIT
trap 'exit 143' TERM INT
set -e
"""


@dataclass
class Running:
    """A job under way. before: the seconds of its earlier starts."""
    job: Job
    process: subprocess.Popen
    begin: float
    before: float

    @property
    def seconds(self):
        return time.monotonic() - self.begin

    def kill(self, number):
        """Send a signal to all processes of the job."""
        if self.process.poll() is None:  # else its group's number may be another's by now
            os.killpg(self.process.pid, number)


def say(text):
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def last_line(path):
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300]


class Queue:
    """Runs jobs. jobs: those to run, in the order of their worth; others: the rest of the list."""

    def __init__(self, jobs, others, gpu, width, minutes, lock):
        self.jobs = {job.name: job for job in jobs}
        self.known = self.jobs | {job.name: job for job in others if job.is_done}
        self.gpu = gpu
        self.width = width
        self.lock = lock
        self.threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // width))
        total = float("inf") if minutes is None else 60 * minutes
        self.begin = time.monotonic()
        self.deadline = self.begin + total
        self.stop_at = self.deadline - min(SAVE_SEC, total / 3)
        self.least = min(LEAST_SEC, total / 3)
        self.todo = [job for job in jobs if not job.is_done]
        self.running = []
        self.failed = []
        self.signal = None
        self.asked = 0  # how often the user has asked to end

    # -- which job is next

    def is_ready(self, job):
        """Can the job run now?"""
        is_free = not why_waiting(job, self.known, self.gpu)
        return is_free and all(self.known[name].is_done for name in job.after)

    def next_job(self):
        """The first ready job that fits into the time, else the first that is ready: what it does is kept."""
        left = self.stop_at - time.monotonic()
        ready = [job for job in self.todo if self.is_ready(job)]
        fitting = [job for job in ready if job.seconds_left(self.gpu) <= left]
        return next(iter(fitting or (ready if left >= self.least else [])), None)

    # -- a job's start and end

    def start(self, job):
        self.todo.remove(job)
        before = job.state().get("seconds", 0)
        job.write_state("running", before)
        lines = [f"printf '%s\\n' {shlex.quote(f'+ {command}')}\n{command}\n" for command in job.commands]
        env = {**os.environ, "OMP_NUM_THREADS": self.threads}
        with open(job.path("log"), "ab") as log:
            log.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')}  {job.name}\n".encode())
            log.flush()
            # The jobs hold the queue's lock with it: a later call waits until they have ended as well.
            process = subprocess.Popen(["sh", "-c", SCRIPT + "".join(lines)], cwd=ROOT, env=env,
                                       stdin=subprocess.PIPE, stdout=log, stderr=log,
                                       start_new_session=True, pass_fds=[self.lock])
        self.running.append(Running(job, process, time.monotonic(), before))
        minutes = job.seconds_left(self.gpu) / 60
        say(f"start    {job.name}  (about {minutes:.1f} min; {job.path('log').relative_to(ROOT)})")

    def collect(self):
        """Write down and say what has ended -> whether anything has."""
        ended = [one for one in self.running if one.process.poll() is not None]
        for one in ended:
            self.running.remove(one)
            one.process.stdin.close()
            code = one.process.returncode
            was_stopped = self.signal is not None and code
            state = "stopped" if was_stopped else "failed" if code else "done"
            one.job.write_state(state, one.before + one.seconds)
            why = ""
            if state == "failed":
                self.failed.append(one.job)
                log = one.job.path("log")
                why = f"  exit code {code}: {last_line(log)}  ({log.relative_to(ROOT)})"
            say(f"{state:<8} {one.job.name}  {one.seconds / 60:.1f} min{why}")
        return bool(ended)

    def stop(self):
        """Ask the running jobs to save and end; end those that have not in time."""
        say(f"stopping {len(self.running)} jobs, which save what they have")
        self.signal = self.signal or signal.SIGTERM
        asked = self.asked
        deadline = min(self.deadline, time.monotonic() + SAVE_SEC)
        for one in self.running:
            one.kill(signal.SIGTERM)
        while self.running:
            if time.monotonic() > deadline or self.asked > asked:
                for one in self.running:
                    one.kill(signal.SIGKILL)
            time.sleep(LOOK_SEC)
            self.collect()

    # -- the whole

    def ask_to_end(self, number, _):
        self.signal = signal.Signals(number)
        self.asked += 1

    def status(self):
        """One line about all jobs. The time to go is at least that of the longest job under way."""
        ready = [job for job in self.todo if not why_waiting(job, self.known, self.gpu)]
        under_way = [max(0, one.job.seconds_left(self.gpu) - one.seconds) for one in self.running]
        seconds = [*under_way, *(job.seconds_left(self.gpu) for job in ready)]
        done = sum(job.is_done for job in self.jobs.values())
        to_go = max(sum(seconds) / self.width, *under_way, 0) / 60
        say(f"status   {done} of {len(self.jobs)} jobs are done, {len(self.running)} are running, "
            f"{len(ready)} to come: about {to_go:.0f} min to go")

    def run(self):
        """-> exit code: 1 if a job failed, 130 or 143 after a signal."""
        for which in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(which) is not signal.SIG_IGN:  # as a shell's background job ignores Ctrl-C
                signal.signal(which, self.ask_to_end)
        say(f"{len(self.todo)} of {len(self.jobs)} jobs to run, {self.width} side by side, CPU threads of "
            f"each: {self.threads}, {'a GPU' if self.gpu else 'no GPU'}")
        told = self.begin
        has_news = True
        while not self.signal and time.monotonic() < self.stop_at:
            while has_news and len(self.running) < self.width and (job := self.next_job()):
                self.start(job)
            if not self.running:
                break
            if time.monotonic() - told >= STATUS_SEC:
                told = time.monotonic()
                self.status()
            time.sleep(LOOK_SEC)
            has_news = self.collect()
        ended_by = self.signal
        if self.running:
            self.stop()
        self.summarise()
        return 128 + ended_by if ended_by else int(bool(self.failed))

    def summarise(self):
        """Say what is left and why."""
        kept = {job.name for job in self.failed}
        for job in self.todo:
            why = why_waiting(job, self.known, self.gpu)
            broken = [name for name in job.after if name in kept]
            if broken:
                kept.add(job.name)
                why = f"'{broken[0]}', which failed or was left out"
            if why:
                say(f"{'left out' if broken else 'waiting':<8} {job.name}  (for {why})")
        left = sum(not job.is_done for job in self.jobs.values())
        done = len(self.jobs) - left
        say(f"{done} of {len(self.jobs)} jobs are done" + ("; the same command goes on" if left else ""))


def take_lock():
    """Be the only queue of this project -> a file's number, to keep open and hand to the jobs.

    Jobs of a call that was killed are waited for while they save. Raises UserError for another call."""
    make_folder(STATE)
    handle = os.open(STATE / "queue.lock", os.O_RDWR | os.O_CREAT, 0o666)
    handle = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 10)  # the shell of a job has use for small numbers
    deadline = time.monotonic() + SAVE_SEC
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(f"{STATE}: another queue of this project is running, or a job of an earlier "
                                f"one; wait for it or stop it") from None
        time.sleep(LOOK_SEC)


def main(args):
    jobs = read_jobs(args.file)
    picked = [job for job in jobs if fnmatch.fnmatchcase(job.name, f"*{args.only}*")]
    others = [job for job in jobs if job not in picked]
    if not picked:
        raise UserError(f"--only {args.only}: no job of {args.file} has such a name; --dry-run lists them")
    if args.pack:
        return pack(picked, args.pack, args.limit, args.total)
    gpu = has_gpu()
    if args.dry_run:
        return print_plan(picked, others, gpu)
    width = args.jobs or (SIDE_BY_SIDE if gpu else 1)
    return Queue(picked, others, gpu, width, args.minutes, take_lock()).run()


def get_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=number(float, above=0), help="end after so many minutes; running jobs save before")
    add("--jobs", type=number(int, 1), help=f"side by side (default: {SIDE_BY_SIDE} on a GPU, else 1)")
    add("--only", default="", metavar="PATTERN", help="jobs with this in their names; * and ? as in a shell")
    add("--file", type=os.path.abspath, default=str(ROOT / "results" / "queue.json"), help="the list of jobs")
    add("--dry-run", action="store_true", help="print the order, hours and bytes to carry, and stop")
    add("--pack", type=Path, metavar="FOLDER",
        help="pack results, and what jobs that are not done need; unpack with 'cat FOLDER/queue_* | tar xzi'")
    add("--limit", type=number(float, above=0), default=16, metavar="MiB", help="of each archive of --pack")
    add("--total", type=number(float, above=0), metavar="MiB",
        help="of all archives together; what does not fit is named")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        sys.exit(main(get_args()))
    except (UserError, OSError) as error:
        words = str(error) if isinstance(error, UserError) else os_error_in_words(error)
        print(f"error: {words}", file=sys.stderr)
        sys.exit(2)

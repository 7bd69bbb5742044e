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
from pathlib import Path

from report.jobs import STATE, has_gpu, print_plan, read_jobs, why_waiting
from report.packing import UNPACK, pack
from sre2l.run.errors import UserError, os_error_in_words
from sre2l.run.files import last_line, make_folder
from sre2l.run.flags import Parser, number
from sre2l.run.limits import usable_cores
from sre2l.run.paths import ROOT

SIDE_BY_SIDE = 8   # jobs on a GPU: small students are launch-bound, eight take as long as one on an H200
SAVE_SEC = 30      # before the end of --minutes jobs are asked to save and end, or a third of the time before
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


def say(text):
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


class Queue:
    """Runs jobs, in the order of their worth. known, gpu: as in `why_waiting`; width: how many at a time."""

    def __init__(self, jobs, known, gpu, width, minutes, lock):
        self.jobs = jobs
        self.known = known
        self.gpu = gpu
        self.width = width
        self.lock = lock
        self.threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // width))
        total = float("inf") if minutes is None else 60 * minutes
        self.deadline = time.monotonic() + total
        self.stop_at = self.deadline - min(SAVE_SEC, total / 3)
        self.todo = [job for job in jobs if not job.is_done]
        self.running = {}  # process: (job, when it was started)
        self.failed = set()  # names
        self.signal = None
        self.asked = 0  # how often the user has asked to end

    def why_waiting(self, job):
        return why_waiting(job, self.known, self.gpu, self.failed)

    def next_job(self):
        """The first ready job that fits into the time, else the first that is ready: what it does is kept."""
        left = self.stop_at - time.monotonic()
        ready = [job for job in self.todo
                 if not self.why_waiting(job) and all(self.known[name].is_done for name in job.after)]
        fitting = [job for job in ready if job.seconds_left(self.gpu) <= left]
        return next(iter(fitting or ready), None)

    def start(self, job):
        self.todo.remove(job)
        job.write_state("running", job.state().get("seconds", 0))
        lines = [f"printf '%s\\n' {shlex.quote(f'+ {command}')}\n{command}\n" for command in job.commands]
        env = {**os.environ, "OMP_NUM_THREADS": self.threads}
        with open(job.path("log"), "ab") as log:
            log.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')}  {job.name}\n".encode())
            log.flush()
            # The jobs hold the queue's lock with it: a later call waits until they have ended as well.
            process = subprocess.Popen(["sh", "-c", SCRIPT + "".join(lines)], cwd=ROOT, env=env,
                                       stdin=subprocess.PIPE, stdout=log, stderr=log,
                                       start_new_session=True, pass_fds=[self.lock])
        self.running[process] = job, time.monotonic()
        minutes = job.seconds_left(self.gpu) / 60
        say(f"start    {job.name}  (about {minutes:.1f} min; {job.path('log').relative_to(ROOT)})")

    def collect(self):
        """Write down and say what has ended -> whether anything has."""
        ended = [process for process in self.running if process.poll() is not None]
        for process in ended:
            job, begin = self.running.pop(process)
            process.stdin.close()
            seconds = time.monotonic() - begin
            code = process.returncode
            state = "done" if code == 0 else "stopped" if self.signal else "failed"
            job.write_state(state, job.state().get("seconds", 0) + seconds)
            why = ""
            if state == "failed":
                self.failed.add(job.name)
                log = job.path("log")
                why = f"  exit code {code}: {last_line(log)[:300]}  ({log.relative_to(ROOT)})"
            say(f"{state:<8} {job.name}  {seconds / 60:.1f} min{why}")
        return bool(ended)

    def send(self, number):
        """Send a signal to all processes of the running jobs."""
        for process in self.running:
            if process.poll() is None:  # else its group's number may be another's by now
                os.killpg(process.pid, number)

    def stop(self):
        """Ask the running jobs to save and end; end those that have not in time."""
        say(f"stopping {len(self.running)} jobs, which save what they have")
        self.signal = self.signal or signal.SIGTERM
        asked = self.asked
        deadline = min(self.deadline, time.monotonic() + SAVE_SEC)
        self.send(signal.SIGTERM)
        while self.running:
            if time.monotonic() > deadline or self.asked > asked:
                self.send(signal.SIGKILL)
            time.sleep(LOOK_SEC)
            self.collect()

    def ask_to_end(self, number, _):
        self.signal = signal.Signals(number)
        self.asked += 1

    def run(self):
        """-> exit code: 1 if a job failed, 130 or 143 after a signal."""
        for which in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(which) is not signal.SIG_IGN:  # as a shell's background job ignores Ctrl-C
                signal.signal(which, self.ask_to_end)
        say(f"{len(self.todo)} of {len(self.jobs)} jobs to run, {self.width} side by side, CPU threads of "
            f"each: {self.threads}, {'a GPU' if self.gpu else 'no GPU'}")
        has_news = True
        while not self.signal and time.monotonic() < self.stop_at:
            while has_news and len(self.running) < self.width and (job := self.next_job()):
                self.start(job)
            if not self.running:
                break
            time.sleep(LOOK_SEC)
            has_news = self.collect()
        ended_by = self.signal
        if self.running:
            self.stop()

        for job in self.todo:
            if why := self.why_waiting(job):
                say(f"waiting  {job.name}  (for {why})")
        done = sum(job.is_done for job in self.jobs)
        say(f"{done} of {len(self.jobs)} jobs are done"
            + "; the same command goes on" * (done < len(self.jobs)))
        return 128 + ended_by if ended_by else int(bool(self.failed))


def take_lock():
    """Be the only queue of this project -> a file's number, to keep open and hand to the jobs.

    Jobs of a call that was killed are waited for while they save. Raises UserError for another call."""
    make_folder(STATE)
    handle = os.open(STATE / "queue.lock", os.O_RDWR | os.O_CREAT, 0o666)
    handle = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 10)  # the shell of a job has use for small numbers
    begin = time.monotonic()
    said = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if not said:
                say("waiting for another queue, or for jobs of an earlier one to save")
                said = True
            if time.monotonic() > begin + SAVE_SEC:
                raise UserError(f"{STATE}: another queue of this project is running, or a job of an earlier "
                                f"one; wait for it or stop it") from None
        time.sleep(LOOK_SEC)


def main(args):
    jobs = read_jobs(args.file)
    picked = [job for job in jobs if fnmatch.fnmatchcase(job.name, f"*{args.only}*")]
    if not picked:
        raise UserError(f"--only {args.only}: no job of {args.file} has such a name; --dry-run lists them")
    if args.pack and not args.dry_run:
        return pack(picked, {job.name: job for job in jobs}, args.pack, args.limit, args.total)
    gpu = has_gpu()
    known = {job.name: job for job in jobs if job in picked or job.is_done}
    if args.dry_run:
        return print_plan(picked, known, gpu)
    width = args.jobs or (SIDE_BY_SIDE if gpu else 1)
    return Queue(picked, known, gpu, width, args.minutes, take_lock()).run()


def get_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=number(float, above=0), help="end after so many minutes; running jobs save before")
    add("--jobs", type=number(int, 1), help=f"side by side (default: {SIDE_BY_SIDE} on a GPU, else 1)")
    add("--only", default="", metavar="PATTERN", help="jobs with this in their names; * and ? as in a shell")
    add("--file", type=os.path.abspath, default=str(ROOT / "results" / "queue.json"), help="the list of jobs")
    add("--dry-run", action="store_true", help="print the order, hours and bytes to carry, and stop")
    add("--pack", type=Path, metavar="FOLDER",
        help=f"pack results, and what jobs that are not done need: cat FOLDER/queue_??? | {UNPACK}")
    add("--limit", type=number(float, 1), default=16, metavar="MiB", help="of each piece of --pack")
    add("--total", type=number(float, above=0), metavar="MiB",
        help="of all pieces together, at most; what does not fit is named")
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        sys.exit(main(get_args()))
    except (UserError, OSError) as error:
        words = str(error) if isinstance(error, UserError) else os_error_in_words(error)
        print(f"error: {words}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # while it waits for another queue
        sys.exit(130)

"""What waits for a GPU: the four stages on digits, the tests that need one, the quick benchmark.

Run: python -m bench.gpu [OUT]      (or sh bench/gpu.sh [OUT])
Time: at most six minutes on one card; each part has a limit of its own, and what it found by then counts.
Result: one JSON line for each result, then a table; exit code 1 where something fails.
Without a GPU it says what it leaves out.
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.measure import shown, table
from sre2l.run.files import last_line
from sre2l.run.paths import ROOT

LIMITS = {"digits": 110, "tests": 135, "bench": 110}  # seconds
FILES = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py"))
         if "mark.gpu" in path.read_text(encoding="utf-8")]
TESTS = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *FILES,
         "-v", "-n", "10", "--dist", "worksteal"]
BENCH = [sys.executable, "-m", "bench.bench", "recover", "relabel", "validate", "--quick"]
OUTCOME = r"^\[gw\d+\].*? (PASSED|FAILED|ERROR|SKIPPED) (\S.*?) *$"  # a line of pytest -v with workers
FIGURES = ("tflop_s", "tb_s", "ratio", "share_of_peak")  # of the benchmark's rows
COLUMNS = {"part": "part", "what": "what", "end": "end", "seconds": "seconds", "result": "result"}


def has_gpu():
    return torch.cuda.is_available()


def run_limited(command, log, seconds):
    """Run a command, append its output to the file `log`, and kill it with its children when the time is up.

    -> ('done', 'exit code 1' or 'cut after 80 s'; the seconds that it took)."""
    begin = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                                   cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        try:
            code = process.wait(max(seconds, 0))
            end = "done" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            end = f"cut after {seconds:.0f} s"
        finally:  # also where this script is interrupted
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return end, round(time.monotonic() - begin, 1)


def digits_commands(run):
    """The four launchers, as the demo calls them, on a run folder of their own -> {stage: command}."""
    launchers = {
        "squeeze": "squeeze.sh", "recover": "recover.sh", "relabel": "relabel.sh", "validate": "train.sh"}
    return {stage: ["sh", str(ROOT / stage / launcher), "digits", "--name", str(run)]
            for stage, launcher in launchers.items()}


def measure_digits(out):
    """Yield a row for each stage, with the line that it ends by. What follows one that fails is left out."""
    log = out / "digits.log"
    with tempfile.TemporaryDirectory() as folder:
        until = time.monotonic() + LIMITS["digits"]
        end = "done"
        for stage, command in digits_commands(Path(folder) / "digits").items():
            row = {"part": "digits", "what": stage}
            if end != "done":
                yield {**row, "end": "left out"}
                continue
            end, seconds = run_limited(command, log, until - time.monotonic())
            done = re.findall(r"^done: .*", log.read_text(encoding="utf-8"), re.M)
            said = done[-1] if end == "done" and done else last_line(log)
            yield {**row, "end": end, "seconds": seconds, "result": said.replace(f"{folder}/", "")[:200]}


def measure_tests(out):
    """The row of the tests that are skipped without a GPU; of those that have ended where the time is up."""
    end, seconds = run_limited(TESTS, out / "tests.log", LIMITS["tests"])
    log = (out / "tests.log").read_text(encoding="utf-8")
    selected = re.search(r"\[(\d+) items?\]", log)
    outcomes = {"PASSED": [], "FAILED": [], "ERROR": [], "SKIPPED": []}
    for outcome, test in re.findall(OUTCOME, log, re.MULTILINE):
        outcomes[outcome].append(test)

    failures = outcomes["FAILED"] + outcomes["ERROR"]
    counts = {"selected": int(selected[1]) if selected else None, "passed": len(outcomes["PASSED"]),
              "failed": len(failures), "skipped": len(outcomes["SKIPPED"])}
    result = ", ".join(f"{count} {what}" for what, count in counts.items())
    return {"part": "tests", "what": "that need a GPU", "end": end, "seconds": seconds, "result": result,
            **counts, "failures": failures}


def measure_bench(out):
    """Yield the benchmark's rows, then one on how it ended."""
    end, seconds = run_limited(BENCH, out / "bench.log", LIMITS["bench"])
    for line in (out / "bench.log").read_text(encoding="utf-8").splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            names = (row["section"], *(row.get(key) for key in ("what", "network", "dataset", "precision")))
            what = " ".join(filter(None, names))
            figures = [f"{key} {shown(row[key])}" for key in FIGURES if row.get(key)]
            yield {"part": "bench", "what": what, "end": "done", "result": ", ".join(figures), "row": row}
    yield {"part": "bench", "what": "quick benchmark", "end": end, "seconds": seconds}


def measure(out):
    """Yield the rows of all parts."""
    if not has_gpu():
        yield from ({"part": part, "what": "all of it", "end": "left out"} for part in LIMITS)
        return
    yield from measure_digits(out)
    yield measure_tests(out)
    yield from measure_bench(out)


def main(out):
    """Run all parts; `out`: the folder for what is written -> the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "tests.log", "digits.log", "bench.log"):
        (out / name).write_text("", encoding="utf-8")
    rows = []
    for row in measure(out):
        rows.append(row)
        print(json.dumps(row), flush=True)
        with open(out / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, so nothing ran"
    summary = f"{table(rows, COLUMNS)}\n{device}, torch {torch.__version__}\n"
    print(f"\n{summary}")
    (out / "summary.txt").write_text(summary, encoding="utf-8")
    return int(any(row["end"] not in ("done", "left out") for row in rows))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1]).resolve()))
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(main(Path(folder)))

"""Has this Python what requirements.txt asks for? Prints the first thing that is missing and exits 1."""
# ruff: noqa: UP006, UP031, UP036
import os
import re
import sys


def first_problem():
    if sys.version_info < (3, 11):
        return "Python 3.11 or newer is needed, this is %d.%d" % sys.version_info[:2]
    from importlib.metadata import PackageNotFoundError, requires, version
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    for line in open(os.path.join(root, "requirements.txt"), encoding="utf-8"):
        name, wanted = re.match(r"([\w-]+)>=([\d.]+)", line).groups()
        try:
            found = version(name)
        except PackageNotFoundError:
            return "the package %s is missing" % name
        if [int(n) for n in re.findall(r"\d+", found)[:2]] < [int(n) for n in wanted.split(".")][:2]:
            return "%s %s is older than %s" % (name, found, wanted)

    # A torchvision of another torch ends in a traceback of "operator torchvision::nms does not exist".
    torch = version("torch").partition("+")[0]
    for line in requires("torchvision") or ():
        exact = re.match(r"torch *\(?==([^\s;)]+)", line)
        if exact and exact.group(1).partition("+")[0] != torch:
            return "torchvision %s was built for torch %s, and torch is %s" % (
                version("torchvision"), exact.group(1), torch)
    return None


if __name__ == "__main__":
    problem = first_problem()
    if problem:
        print(problem)
        sys.exit(1)

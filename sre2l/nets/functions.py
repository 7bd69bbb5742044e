"""Networks of the user's own: package.module:function and PATH.py:function, called with num_classes=N.

Code runs only because the user has typed its name on this command line. What a checkpoint or a record says is
a name to compare, never one to run: teacher.py asks for it."""
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from pathlib import Path

from torch import nn

from sre2l.run.errors import UserError, first_line

DOTTED = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"


def is_function(arch):
    """Does a network's name say whose function gives it, in a file or in a module?"""
    place, _, function = arch.rpartition(":")
    is_place = place.endswith(".py") or re.fullmatch(DOTTED, place)
    return bool(is_place) and function.isidentifier()


def recorded_name(arch):
    """A network's name as checkpoints and settings have it: of a file's path its last part alone.

    So nets.py:Net is the same network from whatever folder it is typed, and source_sha256 tells two files of
    one name apart."""
    place, colon, function = arch.rpartition(":")
    return f"{Path(place).name}{colon}{function}" if place.endswith(".py") else arch


def source_sha256(arch):
    """The sha256 of the file in PATH.py:function; None for a network of any other name."""
    place, _, _ = arch.rpartition(":")
    if not is_function(arch) or not place.endswith(".py"):
        return None
    return hashlib.sha256(read_source(place)).hexdigest()


def read_source(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); the file of a network is named as "
                        f"PATH.py:function") from None


def describe_fault(error):
    """An exception out of the user's code: what it is, and the line it comes from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{first_line(error)}, in {Path(frame.filename).name} line {frame.lineno}"


@functools.cache
def load_file(path, digest):
    """A module from a file, once for each of its contents. It finds the files beside it."""
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: our own modules win
    name = f"network_file_{digest[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_module(arch, place):
    """The module that holds the function. Raises UserError where it is not there or fails on import."""
    digest = source_sha256(arch)
    try:
        return load_file(place, digest) if digest else importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and place.startswith(error.name):
            raise UserError(f"{arch}: there is no module {error.name}; install it, put its folder on "
                            f"PYTHONPATH, or name a file, as PATH.py:function") from None
        raise UserError(f"{arch}: needs the module {error.name}, which is not installed") from None
    except Exception as error:  # of the user's code: it can be anything
        raise UserError(f"{arch}: cannot be imported ({describe_fault(error)})") from None


def find_function(arch):
    """What the name names, something to call. Runs the code of its module."""
    place, _, name = arch.rpartition(":")
    module = load_module(arch, place)
    found = getattr(module, name, None)
    if callable(found):
        return found
    callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    close = difflib.get_close_matches(name, callables, 3, 0.4)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    what = f"has no function {name}" if found is None else f"{name} is a {type(found).__name__}, no function"
    raise UserError(f"{arch}: {place} {what}{hint}")


def call_function(arch, num_classes):
    """Call PATH.py:function or package.module:function with num_classes -> an nn.Module.

    Raises UserError, a sentence, for all that can be wrong with it."""
    function = find_function(arch)
    try:
        inspect.signature(function).bind(num_classes=num_classes)
    except TypeError as error:
        raise UserError(f"{arch}: cannot be called with num_classes={num_classes} alone ({error}); write a "
                        f"function of num_classes that returns the network, and name that") from None
    except ValueError:  # a function without a signature, written in C: the call tells
        pass
    try:
        network = function(num_classes=num_classes)
    except Exception as error:  # of the user's code: it can be anything
        raise UserError(f"{arch}: fails with num_classes={num_classes} ({describe_fault(error)})") from None
    if not isinstance(network, nn.Module):
        raise UserError(f"{arch}: returns a {type(network).__name__}, where a network, a torch.nn.Module, is "
                        f"wanted")
    if next(network.parameters(), None) is None:
        raise UserError(f"{arch}: returns a network without weights, which cannot be trained")
    return network

"""Networks of the user's own: package.module:function and PATH.py:function, called with num_classes=N.

Code runs only because the user has typed its name on this command line. What a checkpoint or a record says is
a name to compare, never one to run: teacher.py asks for it."""
import contextlib
import difflib
import functools
import hashlib
import importlib
import inspect
import os
import random
import re
import sys
import traceback
import types
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sre2l.run.errors import UserError, first_line

DOTTED = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
NEIGHBOURS = {}  # {folder: {name: module}}: what the networks' files in a folder imported from beside them
RETURNED = weakref.WeakSet()  # the networks that users' functions have returned


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


def is_file(arch):
    """Is it PATH.py:function, a function in a file?"""
    return is_function(arch) and arch.rpartition(":")[0].endswith(".py")


def source_sha256(arch):
    """The sha256 of the file in PATH.py:function, and of what it and the function have imported from beside
    it; None for a network of any other name. Call it once the network is built."""
    if not is_file(arch):
        return None
    place = arch.rpartition(":")[0]
    digest = hashlib.sha256(read_source(place))
    folder = os.path.dirname(os.path.abspath(place))
    for file in sorted({*map(file_of, NEIGHBOURS.get(folder, {}).values())} - {None}):
        digest.update(os.path.relpath(file, folder).encode() + read_source(file))
    return digest.hexdigest()


def describe_arch(arch):
    """What a checkpoint of ours says of its network: the name, and what the code was that it stood for."""
    digest = source_sha256(arch)
    return {"arch": recorded_name(arch), **({"arch_sha256": digest} if digest else {})}


def read_source(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); the file of a network is named as "
                        f"PATH.py:function") from None


def describe_fault(error):
    """An exception out of the user's code: what it is, and the line it comes from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    is_syntax = isinstance(error, SyntaxError) and error.filename
    file, line = (error.filename, error.lineno) if is_syntax else (frame.filename, frame.lineno)
    return f"{first_line(error)}, in {Path(file).name} line {line}"


def top_of(name):
    return name.partition(".")[0]


def file_of(module):
    return getattr(module, "__file__", None)


def neighbours(folder, known):
    """{name: module} of what has been imported from files in a folder, beside the top names that were known.

    Those are modules and packages right in the folder, and all that lies in such a package."""
    new = {name: module for name, module in list(sys.modules.items()) if top_of(name) not in known}
    here = set()
    for name, module in new.items():
        file = str(file_of(module))
        if file == f"{folder}/{top_of(name)}.py" or file.startswith(f"{folder}/{top_of(name)}/"):
            here.add(top_of(name))
    return {name: module for name, module in new.items() if top_of(name) in here}


@contextlib.contextmanager
def finding(folder):
    """While code of the user's runs, the files in its folder are found before all others.

    Two folders may each have a layers.py: what was imported from another folder is unknown meanwhile. Later
    imports, in a forward pass, find the files behind all others, where they cannot take our own modules'
    place."""
    for modules in NEIGHBOURS.values():
        for name in modules:
            sys.modules.pop(name, None)
    own = NEIGHBOURS.setdefault(folder, {})
    sys.modules.update(own)
    known = set(map(top_of, sys.modules)) - set(map(top_of, own))
    before = list(sys.path)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = before if folder in before else [*before, folder]
        own.update(neighbours(folder, known))


@contextlib.contextmanager
def guarded(arch):
    """Around the user's code: it finds the files beside its own; what it prints goes to standard error, for a
    --dry-run's JSON is alone on standard output; torch's default dtype and gradient mode, and the current
    folder, are put back."""
    folder = os.path.dirname(os.path.abspath(arch.rpartition(":")[0]))
    dtype = torch.get_default_dtype()
    here = os.getcwd()
    with contextlib.redirect_stdout(sys.stderr), torch.enable_grad():
        try:
            with finding(folder) if is_file(arch) else contextlib.nullcontext():
                yield
        finally:
            torch.set_default_dtype(dtype)
            os.chdir(here)


@functools.cache
def load_file(path, source):
    """A module from a file, once for each of its contents, `source`."""
    name = f"network_file_{hashlib.sha256(source).hexdigest()[:12]}"
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = path
    exec(compile(source, path, "exec"), vars(module))
    return module


def load_module(arch, place):
    """The module that holds the function. Raises UserError where it is not there or fails on import."""
    source = read_source(place) if is_file(arch) else None
    try:
        with guarded(arch):
            return importlib.import_module(place) if source is None else load_file(place, source)
    except (Exception, SystemExit) as error:  # of the user's code: it can be anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{place}.".startswith(f"{missing}."):
            raise UserError(f"{arch}: there is no module {missing}; install it, put its folder on "
                            f"PYTHONPATH, or name a file, as PATH.py:function") from None
        if missing:
            raise UserError(f"{arch}: needs the module {missing}, which is not installed") from None
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


def what_is_odd(value):
    """Why an entry of a state dict cannot be stored and read again; None where it can."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}, and no tensor"
    if is_lazy(value):
        return "of a lazy layer, which has no shape yet"
    if value.is_meta:
        return "on torch's device 'meta', without values"
    return "made in torch.inference_mode, where nothing can be trained" if value.is_inference() else None


def check_network(arch, network):
    """Raise UserError unless a function's result is a network of its own that can be trained and stored."""
    if not isinstance(network, nn.Module):
        raise UserError(f"{arch}: returns a {type(network).__name__}, where a network, a torch.nn.Module, is "
                        f"wanted")
    if isinstance(network, torch.jit.ScriptModule):
        raise UserError(f"{arch}: returns a network of TorchScript; return the one that it was made of")
    if network in RETURNED:
        raise UserError(f"{arch}: returns the same network once more, with the weights that it has by now; "
                        f"let the function make a new one in each call")
    if next(network.parameters(), None) is None:
        raise UserError(f"{arch}: returns a network without weights, which cannot be trained")
    for name, value in network.state_dict().items():
        odd = what_is_odd(value)
        if odd:
            raise UserError(f"{arch}: its {name} is {odd}; let the function make a network of plain tensors")
    RETURNED.add(network)


def call_function(arch, num_classes):
    """Call PATH.py:function or package.module:function with num_classes -> an nn.Module.

    Its weights depend on torch's seed alone: NumPy's and Python's generators begin from that one as well.
    Raises UserError, a sentence, for all that can be wrong with it."""
    function = find_function(arch)
    try:
        inspect.signature(function).bind(num_classes=num_classes)
    except TypeError as error:
        raise UserError(f"{arch}: cannot be called with num_classes={num_classes} alone ({error}); write a "
                        f"function of num_classes that returns the network, and name that") from None
    except ValueError:  # a function without a signature, written in C: the call tells
        pass
    np.random.seed(torch.initial_seed() % 2 ** 32)
    random.seed(torch.initial_seed())
    try:
        with guarded(arch):
            network = function(num_classes=num_classes)
    except (Exception, SystemExit) as error:  # of the user's code: it can be anything
        raise UserError(f"{arch}: fails with num_classes={num_classes} ({describe_fault(error)})") from None
    check_network(arch, network)
    return network

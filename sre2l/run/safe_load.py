"""Files of strangers: torch.load without open pickle, after the zip's checksums, which torch leaves out."""
import argparse
import io
import os
import pickle
import re
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING

import numpy as np
import torch

from sre2l.run.errors import UserError, first_line

try:
    from numpy._core.multiarray import scalar as numpy_scalar  # numpy 2
except ImportError:
    from numpy.core.multiarray import scalar as numpy_scalar
# What files may hold besides tensors and plain values. Published label files have numpy integers in their
# cutmix box, under the names of numpy 1 and 2; torchvision's reference scripts save the flags of a run.
KNOWN_TYPES = (
    (numpy_scalar, "numpy.core.multiarray.scalar"), (numpy_scalar, "numpy._core.multiarray.scalar"),
    np.dtype, type(np.dtype(np.int64)), type(np.dtype(np.float64)), argparse.Namespace)
# Python's own modules, also as Python 2 called them, which pickles still do; and those without an attack.
PYTHONS_OWN = sys.stdlib_module_names | IMPORT_MAPPING.keys()
HARMLESS = ("argparse", "collections", "datetime", "pathlib")


def forbid_open_pickle():
    """Deny open pickle to every torch.load of this process; torchvision asks for it after a download."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # torch stops where both are set


def allow_known_types():
    """Let torch.load make KNOWN_TYPES, once: to add and remove them at each file disturbs other threads."""
    torch.serialization.add_safe_globals(list(KNOWN_TYPES))


def check_members(file):
    """Raise BadZipFile unless every member of a torch.save zip has the bytes that its checksum was taken of;
    a file in the format of before torch 1.6 has none. Leaves the file at its start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) == b"PK\x03\x04":  # what torch.load goes by, too
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            # torch.save neither compresses nor overlaps
            if sum(member.file_size for member in members) > size:
                raise zipfile.BadZipFile("its members claim more bytes than the file has")
            for member in members:
                # a folder to torch, which then leaves the tensor's memory as it finds it
                if member.external_attr & 0x10:
                    raise zipfile.BadZipFile(f"its member {member.filename} is marked as a folder")
                with archive.open(member) as content:
                    while content.read(2 ** 20):
                        pass
    file.seek(0)


def safe_load(path, what, data=None, advice=""):
    """What torch.save wrote into a file, on the CPU: tensors, plain values and KNOWN_TYPES alone.

    what: 'checkpoint' or 'label file'; data: the file's bytes if they are read. Raises UserError; where the
    file holds an object of some class, with the advice. None is given about functions that torch blocks, such
    as os.system, or that come with Python: they are an attack."""
    try:
        with open(path, "rb") if data is None else io.BytesIO(data) as file:
            check_members(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such {what}") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds {found[1]}, which is not" if found else "it is damaged, or holds what is not"
        named = re.search(r"GLOBAL (\w+)\.\S+ was not an allowed global", str(error))
        is_class = named and (named[1] in HARMLESS or named[1] not in PYTHONS_OWN)
        raise UserError(f"{path}: not a {what} that loads safely ({why} part of the format)"
                        f"{advice if is_class else ''}") from None
    except Exception as error:  # damage shows as anything from EOFError to LookupError
        why = f"it is damaged, or no file of torch's: {first_line(error)}"
        if "TorchScript" in str(error):  # whose advice is to run what is in it
            why = "it is an archive of TorchScript, which holds code; give the state_dict() of its network"
        raise UserError(f"{path}: not a {what} that loads safely ({why})") from None


def is_whole(value):
    """Is it a tensor whose elements are all in the file: dense, on the CPU, not spread by strides of 0?"""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_nested:
        return False
    return value.device.type == "cpu" and value.nbytes <= value.untyped_storage().nbytes()

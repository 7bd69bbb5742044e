"""Files of strangers: torch.load without open pickle, once the checksums of the zip are right, which torch does not look at."""
import io
import os
import pickle
import re
import zipfile

import torch

from sre2l.run.errors import UserError, first_line

# torchvision asks for open pickle when it loads what it downloaded: torch's own switch denies it to every torch.load of this process.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # torch stops where both are set


def check_members(file):
    """Raise BadZipFile unless every member of a torch.save zip has the bytes that its checksum was taken of; a file in the format of
    before torch 1.6 has none. Leaves the file at its start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) == b"PK\x03\x04":  # what torch.load goes by, too
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > size:  # torch.save neither compresses nor overlaps
                raise zipfile.BadZipFile("its members claim more bytes than the file has")
            for member in members:
                if member.external_attr & 0x10:  # a folder to torch, which then leaves the tensor's memory as it finds it
                    raise zipfile.BadZipFile(f"its member {member.filename} is marked as a folder")
                with archive.open(member) as content:
                    while content.read(2 ** 20):
                        pass
    file.seek(0)


def safe_load(path, what, data=None):
    """What torch.save wrote into a file, on the CPU, from tensors, plain values and the types registered by name alone.

    what: 'checkpoint' or 'label file', for the message; data: the file's bytes where they are read already. Raises UserError."""
    try:
        with open(path, "rb") if data is None else io.BytesIO(data) as file:
            check_members(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such {what}") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds {found[1]}, which is not part of the format" if found else "it is damaged, or holds what is not part of the format"
        raise UserError(f"{path}: not a {what} that loads safely ({why})") from None
    except Exception as error:  # damage shows as anything from EOFError to LookupError
        raise UserError(f"{path}: not a {what} that loads safely (it is damaged, or no file of torch's: {first_line(error)})") from None


def is_whole(value):
    """Whether a value is a tensor whose elements are all in the file: dense, on the CPU, and not a few that strides of 0 spread out."""
    return (isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_nested and value.device.type == "cpu"
            and value.nbytes <= value.untyped_storage().nbytes())

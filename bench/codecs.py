"""What each codec of labels costs: the error of target and gradient, bytes, seconds of reading and of `none`.

Run: python -m bench.codecs [error|sizes|reading|recipe ...]      (no section: all)
Time: error 3 minutes of a core, reading 1, recipe 1. error needs torchvision's MobileNetV2.
Result: results/labels/measured.json, of which python3 -m report.labels makes what docs/labels.md shows.
"""
import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from bench.world import draw_settings
from relabel.plan import num_label_bytes
from relabel.recipe import Recipe
from relabel.relabel import label_batches
from relabel.teacher_form import Labeller, forms_of
from report.rows import RESULTS, Row
from sre2l.check.verify import read_synthetic
from sre2l.data.augment import show_batch
from sre2l.data.codecs import codec_of
from sre2l.data.datasets import DATASETS
from sre2l.data.derived import draw_label_batch
from sre2l.data.label_files import encode_label_batch, label_name, read_label_batch
from sre2l.data.loader import BatchDataset, Batches, load_batches
from sre2l.data.packed import encode_epoch, packed_name
from sre2l.data.pixel_store import keep_decoded
from sre2l.nets.models import build_network
from sre2l.nets.teacher import load_teacher
from sre2l.run.device import versions
from sre2l.run.files import hash_file, read_json, write_bytes, write_json

SPEC = DATASETS["imagenet1k"]
CLASSES = SPEC.num_classes
CPU = torch.device("cpu")
T = 20
CODECS = ("fp16", "uint8", "topk:200", "topk:100", "topk:10", "topk:5", "topk:1")
BATCH, EPOCHS = 10, 10   # of `error` and `recipe`: 100 crops of ten images
ROWS, READ = 50_000, 3   # of `reading`: rows of an epoch, epochs


def settings_of(batch, epochs):
    """The part of a manifest that draws and bytes depend on: SRe2L's setting of ImageNet."""
    return {**draw_settings(224), "num_classes": CLASSES, "batch_size": batch, "epochs": epochs,
            "logits": "fp16"}


def compare(found, exact):
    """Two gradients, lists of tensors -> |found - exact| / |exact|, the cosine between them."""
    found, exact = (torch.cat([each.flatten() for each in gradient]) for gradient in (found, exact))
    return ((found - exact).norm() / exact.norm()).item(), F.cosine_similarity(found, exact, 0).item()


def make_world(folder):
    """-> (MobileNetV2; stream(): EPOCHS batches of crops of ten recovered images, as relabel draws them)."""
    Row("imagenet1k_ipc1", "imagenet1k").unpack(folder)
    images, _ = keep_decoded(read_synthetic(folder / "images", CLASSES, range(0, 100, 11)))
    shown = BatchDataset(images, 224, partial(draw_label_batch, settings_of(BATCH, EPOCHS)))
    stream = partial(load_batches, shown, Batches(len(images), BATCH, 42, EPOCHS), 0, CPU)
    return load_teacher(SPEC, None, "mobilenet_v2").network, stream


def labelled(network, precision, stream, dtype):
    """Yield the LabelBatch of each batch of a stream, by a teacher in this precision."""
    for _, label_batch, _ in label_batches([Labeller(network, precision)], stream(), SPEC, dtype):
        yield label_batch


def error(folder):
    """Of each codec: the L1 distance of softmax(logits / 20) from that of float32 logits, and the relative
    error of the gradient of a fresh ResNet-18's parameters, with the cosine between the two; means over
    batches of ten crops."""
    network, stream = make_world(folder)
    half = next(iter(forms_of(network, 224, "bf16").values()))()
    torch.manual_seed(0)
    student, _ = build_network("resnet18", CLASSES, "torchvision")
    parameters = list(student.parameters())
    found = {name: {"target": [], "gradient": [], "cosine": []} for name in (*CODECS, "bf16 teacher")}
    for (_, pixels, _), stored, rough in zip(stream(), labelled(network, "fp32", stream, torch.float32),
                                             labelled(half, "bf16", stream, torch.float32)):
        outputs = student(show_batch(pixels, stored.mix, SPEC.mean, SPEC.std))
        guess = (outputs / T).softmax(1).detach()

        def gradient(target, outputs=outputs, guess=guess):
            return torch.autograd.grad(outputs, parameters, (guess - target) / T / BATCH, retain_graph=True)

        exact = (stored.logits / T).softmax(1)
        wanted = gradient(exact)
        for name, values in found.items():
            logits = rough.logits
            if name in CODECS:
                codec = codec_of(name)
                logits = codec.decode(codec.encode(stored.logits), CLASSES)
            target = (logits.float() / T).softmax(1)
            values["target"].append((target - exact).abs().sum(1).mean().item())
            distance, cosine = compare(gradient(target), wanted)
            values["gradient"].append(distance)
            values["cosine"].append(cosine)
    return {name: {key: float(f"{np.mean(each):.3g}") for key, each in values.items()}
            for name, values in found.items()}


def sizes():
    """The bytes of 300 epochs of ImageNet-1K, calculated: {IPC: {codec: bytes}}."""
    found = {}
    for ipc in (10, 50, 200):
        settings = settings_of(1024, 300)
        count = 1000 * ipc
        packed = {**settings, "layout": "packed"}
        values = {"fp16": num_label_bytes(count, settings), "fp16, packed": num_label_bytes(count, packed)}
        values |= {name: num_label_bytes(count, {**packed, "codec": name}) for name in CODECS[1:]}
        values["fp16, keep 0.1"] = num_label_bytes(count, {**settings, "epochs": 30})
        values["fp16, keep 0.03"] = num_label_bytes(count, {**settings, "epochs": 9})
        found[str(ipc)] = {**values, "none": 0}
    return found


def forget(paths):
    """Let the system drop these files from memory, as if they had not been read."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def reading(folder):
    """Epochs a second of both layouts, 50,000 rows of 1,000 classes in batches of 1,024, cold and warm, the
    fastest of six. Every hash is checked, as validate does, and the logits are copied once."""
    settings = settings_of(1024, READ)
    rng = np.random.default_rng(0)
    for epoch in range(READ):
        label_batches_ = []
        for batch in Batches(ROWS, 1024, 42, epoch + 1, epoch):
            drawn = draw_label_batch(settings, batch, np.full((len(batch.rows), 2), 224))
            logits = torch.from_numpy(rng.standard_normal((len(batch.rows), CLASSES), np.float32)).half()
            label_batches_.append(drawn._replace(logits=logits))
        for index, label_batch in enumerate(label_batches_):
            write_bytes(folder / "released" / label_name(epoch, index), encode_label_batch(label_batch))
        for name in ("fp16", "uint8", "topk:10"):
            write_bytes(folder / name / packed_name(epoch), encode_epoch(epoch, label_batches_, name))
    found = {}
    for kind in ("released", "fp16", "uint8", "topk:10"):
        root = folder / kind
        files = [path for path in root.rglob("*") if path.is_file()]
        hashes = {path.relative_to(root).as_posix(): hash_file(path) for path in files}
        seconds = {"cold": [], "warm": []}
        for temperature in ("cold", "cold", "warm", "warm"):
            for epoch in range(READ):
                mine = [path for path in files if f"epoch_{epoch}" in path.as_posix()]
                if temperature == "cold":
                    forget(mine)
                begin = time.perf_counter()
                for batch in Batches(ROWS, 1024, 42, epoch + 1, epoch):
                    stored = read_label_batch(root, epoch, batch.index, len(batch.rows), CLASSES, hashes)
                    stored.logits.clone()
                seconds[temperature].append(time.perf_counter() - begin)
        found[kind] = {"bytes": sum(path.stat().st_size for path in files) // READ,
                       "files": len(files) // READ,
                       **{f"{key} epochs/s": round(1 / min(each), 2) for key, each in seconds.items()}}
    return found


def recipe(folder):
    """CPU seconds of the labels of an epoch of 100 crops at 224, read or computed beside the student, and
    whether the two are the same bits, of a teacher in float32 and in bf16."""
    teacher, stream = make_world(folder)
    found = {}
    for precision in ("fp32", "bf16"):
        network = next(iter(forms_of(teacher, 224, precision).values()))()
        begin = time.process_time()
        stored = [*labelled(network, precision, stream, torch.float16)]
        labelling = time.process_time() - begin
        root = folder / f"labels_{precision}"
        for epoch, label_batch in enumerate(stored):
            write_bytes(root / packed_name(epoch), encode_epoch(epoch, [label_batch], "fp16"))

        begin = time.process_time()
        read = [read_label_batch(root, epoch, 0).logits.clone() for epoch in range(EPOCHS)]
        reading_seconds = time.process_time() - begin
        form = Recipe([Labeller(network, precision)], SPEC, torch.float16, "fp32")
        again = [form.complete(pixels, label_batch).logits for _, pixels, label_batch in stream()]
        found[precision] = {
            "label once, s": round(labelling, 2), "read, s": round(reading_seconds, 4),
            "same bits": all(torch.equal(one, other) for one, other in zip(read, again, strict=True))}
    student, _ = build_network("resnet18", CLASSES, "torchvision")
    begin = time.process_time()
    for _, pixels, label_batch in stream():
        outputs = student(show_batch(pixels, label_batch.mix, SPEC.mean, SPEC.std))
        F.cross_entropy(outputs, torch.arange(BATCH)).backward()
    return {**found, "a ResNet-18 student's passes, s": round(time.process_time() - begin, 2)}


SECTIONS = {"error": error, "sizes": lambda folder: sizes(), "reading": reading, "recipe": recipe}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section", nargs="*", choices=[[], *SECTIONS], help="default: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "labels" / "measured.json"
    for name in args.section or SECTIONS:
        with tempfile.TemporaryDirectory() as folder:
            values = SECTIONS[name](Path(folder))
        known = read_json(path) if path.exists() else {}
        write_json(path, {**known, name: values, "versions": {**versions(CPU), "commit": None}})
        print(name, values)


if __name__ == "__main__":
    main()

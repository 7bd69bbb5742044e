"""How easy a teacher finds the images of a class: the scores by which pick ranks them, and their file.

The lower a score, the easier the image. Images are scored class by class, and shown to the teacher with
others of their class alone, so that processes and interruptions change nothing."""
import json
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from recover.picks import Cell, centred, cut, draw_boxes, drawn_rows
from sre2l.data.augment import normalise
from sre2l.nets.statistics import gps_distances
from sre2l.run import signals
from sre2l.run.ahead import in_order
from sre2l.run.device import upload
from sre2l.run.errors import UserError
from sre2l.run.files import append_line, write_bytes
from sre2l.run.log import read_metrics

VIEWS = 256  # that the teacher is shown at a time, of one class


def confidence(network, views, label):
    """Cross-entropy of the class (RDED, DELT). views (n, 3, S, S), normalised -> (n,)."""
    # In float64, or all very easy images would have the score 0; and the logarithm of a softmax would make
    # very hard ones infinite.
    return -network(views).double().log_softmax(1)[:, label]


def gps(network, views, label):
    """Distance of each image's moments from the teacher's running statistics (PSM)."""
    return gps_distances(network, views)


SCORES = {"confidence": confidence, "gps": gps}  # another score is another function here


@dataclass(frozen=True)
class Chunk:
    """Images of one class that are scored together. rows: of the real images; places: in the class."""
    label: int
    rows: list
    places: list
    ends: bool  # its class


def plan_chunks(images, classes, args):
    """Which images are scored together: of one class alone, so that processes change nothing."""
    size = max(1, VIEWS // max(1, args.crops))
    chunks = []
    for label in classes:
        rows = drawn_rows(images, label, args.seed)[:args.most]
        places = np.searchsorted(np.flatnonzero(images.labels == label), rows)
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            chunks.append(Chunk(label, rows[part].tolist(), places[part].tolist(), first + size >= len(rows)))
    return chunks


def cut_chunk(images, args, size, chunk):
    """The candidates of each image -> (chunk, boxes (n, m, 4) or Nones, views (n * m, 3, size, size) uint8).

    m: as many as --crops, or 1, the whole image."""
    boxes = [None] * len(chunk.rows)
    views = []
    for i, (row, place) in enumerate(zip(chunk.rows, chunk.places)):
        pixels = images.pixels(row)
        if args.crops:
            boxes[i] = draw_boxes(pixels.shape[:2], args.crops, args.seed, chunk.label, place).tolist()
        views.append(cut(pixels, boxes[i], size))
    return chunk, boxes, torch.from_numpy(np.concatenate(views)).permute(0, 3, 1, 2)


@torch.inference_mode()
def score_views(teachers, score, views, label, spec):
    """The scores of some views of a class by each teacher -> (K, n) float64 on the CPU.

    views (n, 3, s, s) uint8, on the device. Raises UserError for a score that is not finite."""
    shown = centred(normalise(views, spec.mean, spec.std), spec.size)
    found = torch.stack([score(teacher.network, shown, label).double().cpu() for teacher in teachers])
    for teacher, scores in zip(teachers, found):
        if not scores.isfinite().all():
            raise UserError(f"{teacher.source}: the score of an image of class {label} is not finite; is the "
                            f"teacher a trained one?")
    return found


def join_teachers(found):
    """The scores of all candidates of a class by K teachers (K, n, m) -> (n, m): one teacher's own, or, since
    scores of several do not compare, the mean of the ranks that each gives (PSM)."""
    if len(found) == 1:
        return found[0]
    ranks = found.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    return ranks.double().mean(0).view(found.shape[1:])


def score_classes(images, chunks, args, teachers, spec, device):
    """Score one class after the other, until a signal asks to stop.

    Yields (class, its Cells in drawn order, each the best candidate of its image)."""
    prepare = partial(cut_chunk, images, args, spec.size // args.grid)
    bar = tqdm(total=sum(len(chunk.rows) for chunk in chunks), desc="scoring", unit="image", disable=None,
               leave=False)
    rows, boxes, found = [], [], []  # of the class under way
    with bar, closing(in_order(prepare, chunks, args.workers)) as stream:
        for chunk, candidates, views in stream:
            if signals.stop_requested():
                return
            scores = score_views(teachers, SCORES[args.score], upload(views, device), chunk.label, spec)
            rows += chunk.rows
            boxes += candidates
            found.append(scores.view(len(teachers), len(chunk.rows), -1))
            bar.update(len(chunk.rows))
            if chunk.ends:
                best, crops = (values.tolist() for values in join_teachers(torch.cat(found, 1)).min(1))
                cells = [Cell(row, own and tuple(own[crop]), value)
                         for row, own, crop, value in zip(rows, boxes, crops, best)]
                yield chunk.label, cells
                rows, boxes, found = [], [], []


# -- the file beside the image folder

def read_scores(folder, images, classes, args):
    """The Cells of every class that is scored -> {class: [Cell, ...] in drawn order}."""
    path = folder.path("scores.jsonl")
    found = {}
    for line in read_metrics(path) if path.exists() else ():
        label = line.get("class")
        if label in classes:
            rows = drawn_rows(images, label, args.seed)[:args.most].tolist()
            if len(line["scores"]) == len(rows):
                boxes = [box and tuple(box) for box in line["boxes"] or [None] * len(rows)]
                found[label] = [Cell(*cell) for cell in zip(rows, boxes, line["scores"])]
    return {label: found[label] for label in classes if label in found}


def line_of(label, cells):
    """The scores of a class, in drawn order, as a line of the file."""
    boxes = [cell.box for cell in cells] if cells[0].box else None
    return json.dumps({"class": label, "scores": [cell.score for cell in cells], "boxes": boxes}) + "\n"


def append_scores(folder, label, cells):
    """Add the scores of a class to scores.jsonl, in a line that a kill leaves whole."""
    with folder.lock.moment():
        append_line(folder.path("scores.jsonl"), line_of(label, cells))


def finish_scores(folder, images, classes, args):
    """The scores of all classes, as of read_scores, in whose order the file is written anew.

    Raises UserError where scores are gone, though their images are there."""
    found = read_scores(folder, images, classes, args)
    if len(found) < len(classes):
        raise UserError(f"{folder.path('scores.jsonl')}: holds the scores of {len(found)} of {len(classes)} "
                        f"classes; the same command adds the others")
    write_bytes(folder.path("scores.jsonl"), "".join(map(line_of, found, found.values())).encode())
    return found

"""The rows of the result tables, as results/rows.json names them, and what stands in their folders.

It holds what is published and which folder of results/ has our run of it: another row is another line there.
"""
import tarfile
from dataclasses import dataclass

from report.data import teacher_top1
from sre2l.run.errors import UserError
from sre2l.run.files import read_json
from sre2l.run.log import read_metrics
from sre2l.run.paths import ROOT, student_name

RESULTS = ROOT / "results"
# Archives are unpacked without paths that lead out of them; Python 3.11 before 3.11.4 cannot say so.
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
TABLES = read_json(RESULTS / "rows.json")
NAMES = {
    "digits": "digits", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny-ImageNet",
    "imagenet1k": "ImageNet-1K", "mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "svhn": "SVHN",
    "stl10": "STL-10", "eurosat": "EuroSAT", "imagenette": "ImageNette", "imagewoof": "ImageWoof",
    "imagenet100": "ImageNet-100", "imagenet21k-p": "ImageNet-21K-P", "flowers102": "Flowers-102",
    "food101": "Food-101", "oxford-iiit-pet": "Oxford-IIIT Pet",
    "resnet18": "ResNet-18", "resnet50": "ResNet-50", "resnet101": "ResNet-101",
    "mobilenet_v2": "MobileNetV2", "efficientnet_lite0": "EfficientNet-Lite0"}


def name_of(word):
    """A data set or a network as a table says it; one of a user's own by its own name."""
    return NAMES.get(word, word)


def published(word, model):
    """The published top-1 of these students: {images per class: text of it in percent}.

    word: a data set, or one with a recipe: cifar10+rded."""
    found = TABLES["published"].get(word, {}).get(model, {})
    return {int(ipc): text for ipc, text in found.items()}


@dataclass(frozen=True)
class Row:
    """A line of a table, and the folder of results/ that it is read from.

    folder: may be missing; ipc: images per class, None for a row about the teacher alone; model: the student,
    or that teacher; recipe: such as best, '' for SRe2L's settings, or a word for flags that no recipe has;
    note: what a reader must know beside the number."""
    folder: str
    dataset: str
    ipc: int | None = None
    model: str = "resnet18"
    recipe: str = ""
    note: str = ""

    @property
    def word(self):
        """As run.sh takes it: cifar10, cifar10+best."""
        return f"{self.dataset}+{self.recipe}" if self.recipe else self.dataset

    @property
    def title(self):
        """'CIFAR-10', or 'CIFAR-10, best'."""
        return name_of(self.dataset) + (f", {self.recipe}" if self.recipe else "")

    @property
    def published(self):
        """The published top-1 as text, 'none' where there is none."""
        if self.ipc is None:
            return TABLES["published_teachers"].get(self.word, "none")
        return published(self.word, self.model).get(self.ipc, "none")

    @property
    def is_picked(self):
        """Are the images picked real ones, which no recover has changed?"""
        return "source" in self.settings("images", "manifest")

    @property
    def path(self):
        return RESULTS / self.folder

    def read(self, name):
        """results.json or settings.json of the row, {} where it is not there."""
        path = self.path / name
        return read_json(path) if path.exists() else {}

    def results(self, kind="soft"):
        """The results of the 'soft', 'hard', 'real' or 'picked' student; None where there is none.

        Of a recipe that recovers nothing the 'soft' one is that of picked images."""
        if kind == "picked" and self.is_picked:
            kind = "soft"
        name = student_name(self.model)
        students = {"soft": name, "hard": f"{name}_hard", "real": f"random_real/{name}",
                    "picked": f"picked_real/{name}"}
        return self.read("results.json").get(students[kind])

    def settings(self, output, record):
        """The settings of an output of the run: settings('labels', 'manifest'); {} where there are none."""
        return self.read("settings.json").get(output, {}).get(record, {}).get("settings", {})

    def metrics(self, output):
        """The kept metrics of an output of the run: metrics('images')."""
        path = self.path / "metrics.jsonl"
        found = read_metrics(path) if path.exists() else []
        return [values for values in found if values["output"] == output]

    def log(self, output):
        """The log of an output of the run, '' where there is none."""
        path = self.path / "log.txt"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return text.partition(f"==> {output} <==\n")[2].partition("\n==> ")[0]

    def teacher_top1(self):
        """The labeller's top-1 in percent, measured after its training or by the labels; None if unknown.

        A recipe's may be a teacher of an earlier epoch, or several together, so the labels say it there."""
        by_labels = teacher_top1(self.settings("labels", "manifest"))[0]
        measured = [values["top1"] for values in self.metrics("teacher") if "top1" in values]
        return measured[-1] if measured and not (self.recipe and by_labels) else by_labels

    def unpack(self, folder):
        """Write the files of the row's images.tar into a folder, which it returns."""
        try:
            with tarfile.open(self.path / "images.tar") as archive:
                archive.extractall(folder, **SAFELY)
        except tarfile.TarError as error:
            raise UserError(f"{self.path / 'images.tar'}: no whole archive ({error}); collect the row "
                            f"again") from None
        return folder


def results_of(value):
    """The results that an ablation's value names: 'folder' or 'folder:student'; None where there are none."""
    folder, _, student = value.partition(":")
    row = Row(folder, "")
    return row.read("results.json").get(student) if student else row.results()


def read_steps():
    """The steps of rows.json that have been run -> {label: results}."""
    found = {label: results_of(value) for label, value in TABLES["steps"]}
    return {label: results for label, results in found.items() if results}


def read_grid():
    """Students of several sets of images, each under several protocols: {images: {protocol: results}}.

    They are in one folder's results.json by 'images/protocol'; rows.json has the words for both. Images and
    protocols without any student are left out."""
    grid = TABLES["protocols"]
    found = {}
    for images, key in grid["images"].items():
        line = {name: results_of(f"{grid['folder']}:{key}/{value}")
                for name, value in grid["protocols"].items()}
        if any(line.values()):
            found[images] = line
    run = [name for name in grid["protocols"] if any(line[name] for line in found.values())]
    return {images: {name: line[name] for name in run} for images, line in found.items()}


ROWS = [Row(**row) for row in TABLES["rows"]]
ABLATIONS = TABLES["ablations"]  # [{dataset, varied, values: {as the table says it: see results_of}, tells}]

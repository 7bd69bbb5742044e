"""--protocol: each row has the numbers that are published, flags after it win, and what differs is said."""
import json

import pytest

from sre2l.data.datasets import DATASETS
from sre2l.run.files import read_json
from tests.helpers import SMALL, noise_folder, refused, run_main, synthetic_folder
from tests.test_launchers import planned
from tests.worlds import NAMES, labelled_images
from validate import deviations, published, random_real, train
from validate.protocol import check_protocol, make_settings

# (protocol, data set, IPC): epochs, batch, micro-batch (0: any), optimiser, schedule, loss, temperature, EMA.
# Written down from the papers' code a second time, not from the table under test.
ADAMW, TINY = "AdamW 0.001 0.01", "SGD 0.2 0.9 0.0001 all"
EDC_LOSS = "MSE of raw logits + 0.025 x cross entropy on the own class"
COS, COS2 = "cosine per epoch", "cosine per epoch, slowed by 2"
STEPS = "multistep per epoch, times 0.5 after 0.8, 0.9, 0.95 of the epochs"
ROWS = {
    ("released", "imagenet1k", 50): (300, 1024, 512, ADAMW, COS, "KL", 20, None),
    ("released", "tiny-imagenet", 50): (100, 256, 256, TINY, COS, "KL times T^2", 20, None),
    ("released", "cifar100", 50): (400, 128, 128, f"{ADAMW} all", COS, "KL", 30, None),
    ("released", "cifar10", 10): (400, 128, 128, f"{ADAMW} all", COS, "KL", 30, None),
    ("cda", "imagenet1k", 50): (300, 128, 128, ADAMW, COS, "KL", 20, None),
    ("cda", "tiny-imagenet", 50): (100, 256, 256, TINY, COS, "KL times T^2", 20, None),
    ("rded", "cifar10", 1): (300, 10, 10, ADAMW, COS2, "KL", 20, None),
    ("rded", "cifar10", 10): (300, 50, 50, ADAMW, COS2, "KL", 20, None),
    ("rded", "cifar10", 50): (300, 100, 100, ADAMW, COS2, "KL", 20, None),
    ("rded", "cifar100", 1): (300, 20, 20, ADAMW, COS2, "KL", 20, None),
    ("rded", "cifar100", 50): (300, 200, 200, ADAMW, COS2, "KL", 20, None),
    ("rded", "imagenet1k", 10): (300, 100, 100, ADAMW, COS2, "KL", 20, None),
    ("rded", "tiny-imagenet", 10): (300, 100, 100, ADAMW, COS2, "KL", 20, None),
    ("rded", "imagenette", 10): (300, 50, 50, ADAMW, COS2, "KL", 20, None),
    ("fadrm", "cifar10", 1): (1000, 10, 5, "AdamW 0.0005 0.01", COS, "KL", 20, None),
    ("fadrm", "cifar10", 10): (1000, 16, 8, "AdamW 0.0005 0.01", COS, "KL", 20, None),
    ("fadrm", "cifar100", 1): (1000, 16, 8, "AdamW 0.0005 0.01", COS2, "KL", 20, None),
    ("fadrm", "cifar100", 10): (1000, 16, 8, ADAMW, COS2, "KL", 20, None),
    ("fadrm", "cifar100", 50): (1000, 16, 8, ADAMW, COS, "KL", 20, None),
    ("fadrm", "tiny-imagenet", 1): (1000, 16, 8, ADAMW, COS2, "KL", 20, None),
    ("fadrm", "tiny-imagenet", 10): (300, 16, 8, ADAMW, COS2, "KL", 20, None),
    ("fadrm", "tiny-imagenet", 50): (300, 16, 8, ADAMW, COS, "KL", 20, None),
    ("fadrm", "imagenette", 1): (300, 10, 5, "AdamW 0.0005 0.01", COS2, "KL", 20, None),
    ("fadrm", "imagenette", 10): (300, 10, 5, "AdamW 0.0005 0.01", COS, "KL", 20, None),
    ("fadrm", "imagenette", 50): (300, 10, 5, "AdamW 0.0005 0.01", COS2, "KL", 20, None),
    ("fadrm", "imagewoof", 50): (300, (10, 16), (5, 8), ADAMW, COS2, "KL", 20, None),
    ("fadrm", "imagenet1k", 10): (300, 16, 8, ADAMW, COS2, "KL", 20, None),
    ("fadrm", "imagenet1k", 50): (300, 16, 8, ADAMW, COS, "KL", 20, None),
    ("edc", "imagenet1k", 10): (300, 100, 100, ADAMW, COS2, EDC_LOSS, None, 0.99),
    ("edc", "tiny-imagenet", 1): (1000, 100, 100, ADAMW, COS2, EDC_LOSS, None, 0.99),
    ("edc", "tiny-imagenet", 10): (300, 100, 100, ADAMW, COS2, EDC_LOSS, None, 0.99),
    ("edc", "cifar100", 10): (1000, 50, 50, ADAMW, COS2, EDC_LOSS, None, 0.99),
    ("edc", "cifar10", 1): (1000, 10, 10, ADAMW, STEPS, EDC_LOSS, None, 0.99),
    ("edc", "cifar10", 10): (1000, 25, 25, ADAMW, STEPS, EDC_LOSS, None, 0.99),
    ("rd3", "cifar10", 50): (400, 50, 50, "AdamW 0.001 0.0", COS, "KL", 20, None),
    ("rd3", "imagenet1k", 10): (400, 50, 50, "AdamW 0.001 0.0", COS, "KL", 20, None),
    ("ddranking", "imagenet1k", 10): (300, 0, 0, f"{ADAMW} all", COS2, "KL", 1, None),
    ("ddranking", "cifar10", 10): (300, 0, 0, f"{ADAMW} all", COS2, "KL", 1, None)}
EVERY = {"edc cifar100": 100, "edc cifar10": 10, "edc": 30, "ddranking": 20}  # else 10
CROPS = {  # of the labels, else 0.08 to 1 of the area
    "rded small": "whole images", "rd3 small": "whole images", "rded": "0.5 to 1 of the area",
    "rd3": "0.5 to 1 of the area", "edc": "0.5 to 1 of the area",
    "edc cifar10": "0.08 to 1 of the area", "released cifar10": "padded by 4",
    "released cifar100": "padded by 4"}


def resolve(name, dataset, ipc=None, *flags):
    """-> (the arguments that a protocol gives, its row)."""
    args = train.get_args(["--dataset", dataset, "--protocol", name, *map(str, flags)])
    spec = DATASETS[dataset]
    args.model = args.model or "resnet18"
    args.train_dir = "nowhere"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deviations, "images_per_class", lambda _: ipc)
        deviations.fill_in(args, spec)
    check_protocol(args)
    return args, published.find_row(name, spec, ipc, args.model)


@pytest.mark.parametrize("name, dataset, ipc", ROWS)
def test_a_row_has_the_published_numbers(name, dataset, ipc):
    args, row = resolve(name, dataset, ipc)
    epochs, batch, micro, optimizer, schedule, loss, temperature, ema = ROWS[name, dataset, ipc]
    settings = make_settings(args, DATASETS[dataset])
    assert settings["epochs"] == epochs and settings["schedule"] == schedule
    words = " ".join(map(str, settings["optimizer"].values()))
    assert words + " all" * settings["decay_all"] == optimizer
    assert (settings["loss"], settings["temperature"], settings.get("ema")) == (loss, temperature, ema)
    assert settings["warmup_epochs"] == (5 if "SGD" in optimizer else 0)
    assert settings["eval_every"] == EVERY.get(f"{name} {dataset}", EVERY.get(name, 10))
    assert row.labels.get("batch size", 0) == batch
    steps = settings["gradient_accumulation_steps"]
    assert deviations.choices(batch) == tuple(steps * one for one in deviations.choices(micro))
    size = " small" if DATASETS[dataset].size <= 64 else ""
    wanted = (CROPS.get(f"{name} {dataset}") or CROPS.get(name + size) or CROPS.get(name)
              or "0.08 to 1 of the area")
    assert row.labels["crops"] == wanted


def test_every_protocol_and_every_data_set_of_it_has_been_looked_at():
    """Those that are published for no data set in particular have each size."""
    found = {(name, dataset) for name, dataset, _ in ROWS}
    assert {name for name, _ in found} == set(published.PROTOCOLS)
    for name, (_, datasets) in published.PROTOCOLS.items():
        assert datasets is None or {(name, dataset) for dataset in datasets} <= found


@pytest.mark.parametrize("model, rate, slowdown", [
    ("resnet18", 1e-3, 1), ("mobilenet_v2", 2.5e-3, 2), ("efficientnet_b0", 2e-3, 2), ("vgg11_bn", 5e-4, 2),
    ("alexnet", 1e-4, 2), ("swin_v2_t", 1e-4, 2), ("vit_b_16", 1e-4, 2)])
def test_rates_of_rded_and_slowdown_of_rd3_depend_on_the_student(model, rate, slowdown):
    args, _ = resolve("rded", "imagenet1k", 10, "--model", model)
    assert (args.adamw_lr, args.slowdown) == (rate, 2)
    assert resolve("rd3", "imagenet1k", 10, "--model", model)[0].slowdown == slowdown


@pytest.mark.parametrize("ipc, epochs", [(1, 1000), (3, 1000), (4, 300), (10, 300), (100, 300), (None, 300)])
def test_of_the_rows_by_images_per_class_the_nearest_is_taken(ipc, epochs):
    assert resolve("fadrm", "tiny-imagenet", ipc)[0].epochs == epochs


def test_what_stands_before_a_protocol_is_replaced_and_what_stands_after_it_wins(tmp_path, capsys):
    """The launcher's block of Tiny-ImageNet stands before: SGD, KL times T^2, decay on all, warm-up."""
    run_main(*planned(tmp_path, "validate/train.sh", "tiny-imagenet", "--dry-run", "--epochs", 7, "--sgd",
                      "--protocol", "rded", "--epochs", 20, "--ema", 0.5, "--name", tmp_path / "run"))
    plan = json.loads(capsys.readouterr().out)
    settings = plan["settings"]
    assert settings["optimizer"] == {"name": "AdamW", "lr": 0.001, "weight_decay": 0.01}
    assert (settings["epochs"], settings["ema"], settings["loss"]) == (20, 0.5, "KL")
    assert (settings["warmup_epochs"], settings["decay_all"]) == (0, False)
    said = [line for line in plan["deviations"] if line.endswith("in RDED 3f6453d")]
    assert said == plan["deviations"] and len(said) == 6
    assert said[1:3] == ["epochs: 20 here, 300 in RDED 3f6453d", "ema: 0.5 here, 0.0 in RDED 3f6453d"]


def test_a_protocol_is_not_published_for_every_data_set():
    message = refused(train, "--dataset", "digits", "--protocol", "edc", "--dry-run")
    assert message == ("--protocol edc: nothing is published for digits, only for imagenet1k, tiny-imagenet, "
                       "cifar100, cifar10; leave it away and type the flags")
    refused(train, "--dataset", "digits", "--protocol", "sre2l")
    assert "--protocol would do nothing" in refused(train, "--dataset", "digits", "--evaluate", "x",
                                                    "--protocol", "rded")


def test_a_run_says_each_deviation_from_its_row(tmp_path, capsys):
    """In log and results.json: labels in batches of 16 by padded crops and a teacher in eval mode, IPC 4.
    Settings and checkpoint are those of a run whose flags are typed one by one; a control repeats them."""
    flags = (*labelled_images(tmp_path, "cutmix", "--device", "cpu"), "--device", "cpu", "--model", SMALL)
    noise_folder(tmp_path / "more" / "train", NAMES, 4)
    flags = flags[:flags.index("--epochs")] + flags[flags.index("--epochs") + 2:]  # those of the row stand
    assert "labels for 2 epochs, --epochs asks for 1000" in refused(train, *flags, "--protocol", "fadrm")
    run_main(train, *flags, "--protocol", "fadrm", "--epochs", 2, "--slowdown", 2)
    folder = tmp_path / "run" / f"student_{SMALL}"
    results = read_json(folder / "results.json")
    assert results["published"]["protocol"] == "fadrm"
    at = "in FADRM f445e38"
    assert results["published"]["deviations"] == [
        f"student: {SMALL} here, resnet18 (whose learning rate this is) {at}",
        f"images per class: 4 here, 1, 10 and 50 (the nearest is taken) {at}",
        f"epochs: 2 here, 1000 {at}",
        f"schedule: cosine per epoch, slowed by 2 here, cosine per epoch {at}",
        f"crops of the labels: padded by 4 here, 0.08 to 1 of the area {at}",
        f"teacher of the labels: eval mode here, train mode by parts of 8 {at}",
        f"learning rate and schedule of this row: CV-DD's here, not published {at}",
        f"reported: the last epoch here, the best of those measured in the last fifth of the epochs {at}"]
    said = capsys.readouterr().out
    assert all(f"--protocol fadrm: {line}" in said for line in results["published"]["deviations"])

    run_main(train, *flags, "--epochs", 2, "--eval-every", 10, "--slowdown", 2, "--adamw-lr", 5e-4,
             "--output-dir", tmp_path / "typed")
    typed = read_json(tmp_path / "typed" / "results.json")
    assert typed["protocol"] == results["protocol"] and "published" not in typed

    run_main(random_real, "--dataset", "cifar10", "--name", tmp_path / "run", "--model", SMALL,
             "--real-data", tmp_path / "more")
    control = read_json(tmp_path / "run" / "random_real" / f"student_{SMALL}" / "results.json")
    assert control["published"] == results["published"]
    assert control["protocol"]["schedule"] == COS2 and control["protocol"]["epochs"] == 2


def resized(low):
    """A manifest's crops."""
    return {"kind": "resized", "scale": [low, 1.0], "padding": 0}


FACTS = {"batch_size": 16, "num_images": 500, "mix": "cutmix", "teacher": {}, "batch_statistics": None,
         "crop": resized(0.08)}


@pytest.mark.parametrize("name, dataset, changes, lines", [
    ("fadrm", "imagenet1k", {"batch_statistics": 8}, []),
    ("fadrm", "imagenet1k", {"batch_statistics": True}, ["teacher: train mode by whole batches"]),
    ("fadrm", "tiny-imagenet", {}, []),
    ("fadrm", "tiny-imagenet", {"batch_statistics": 8, "teachers": [{}] * 4}, []),
    ("fadrm", "tiny-imagenet", {"batch_statistics": 4, "teachers": [{}] * 3},
     ["teacher: train mode by parts of 4", "teachers: 3"]),
    ("fadrm", "imagewoof", {"batch_statistics": 8, "teachers": [{}] * 4}, []),
    ("fadrm", "imagewoof", {"batch_statistics": 5, "batch_size": 10}, []),
    ("fadrm", "imagewoof", {"batch_statistics": 4, "batch_size": 8},
     ["teacher: train mode by parts of 4", "batch size: 8"]),
    ("rded", "imagenette", {"batch_size": 50, "crop": resized(0.5), "patch_shuffle": 2}, []),
    ("rded", "cifar10", {"batch_size": 50, "crop": resized(1), "patch_shuffle": 2},
     ["patch shuffle: 2 by 2"]),
    ("edc", "cifar10", {"batch_size": 25, "augment": "randaugment", "teachers": [{}] * 8}, []),
    ("rd3", "cifar100", {"batch_size": 50, "mix": "mixup", "batch_statistics": True},
     ["mix: mixup", "crops: 0.08 to 1 of the area"]),
    ("released", "imagenet1k", {"batch_size": 1024}, []),  # of 500 images no batch can be larger
    ("released", "imagenet1k", {"batch_size": 1024, "codec": "topk:5"}, ["codec: topk:5"]),
    ("released", "imagenet1k", {"batch_size": 1024, "decoded_from": "uint8"}, ["codec: uint8"]),
    ("released", "imagenet1k", {"batch_size": 1024, "codec": "none", "decoded_from": "fp16"}, []),
    ("ddranking", "imagenet1k", {"mix": "none"}, ["mix: none"])])
def test_what_labels_were_made_with_is_compared(name, dataset, changes, lines, tmp_path):
    """Of the labels' manifest; a temperature that is not asked for is not."""
    args, row = resolve(name, dataset, 10, "--train-dir", tmp_path)
    args.train_dir = synthetic_folder(tmp_path / "images", 1, 10)
    found = deviations.find_deviations(args, DATASETS[dataset], FACTS | changes)
    begins = [line.partition(" here, ")[0] for line in found]
    assert [line.replace(" of the labels", "") for line in begins if " of the labels: " in line] == lines
    assert sum(line.partition(":")[0] in deviations.describe_flags(args) for line in found) == 0


@pytest.mark.parametrize("dataset", ("imagenet1k", "tiny-imagenet"))
def test_of_cda_nobody_knows_which_epochs_are_reported(dataset):
    """Its repository has no code of this part."""
    args, _ = resolve("cda", dataset)
    found = deviations.find_deviations(args, DATASETS[dataset], None)
    assert not any(line.startswith("reported:") for line in found)


def test_of_labels_without_a_manifest_what_is_not_known_is_said(tmp_path):
    args, _ = resolve("released", "imagenet1k")
    facts = {"batch_size": 1024, "num_images": 50_000, "mix": "cutmix", "teacher": None}
    found = deviations.find_deviations(args, DATASETS["imagenet1k"], facts)
    assert found[:2] == ["crops of the labels: not known here, 0.08 to 1 of the area in SRe2L 8d00cba",
                         "teacher of the labels: not known here, eval mode in SRe2L 8d00cba"]

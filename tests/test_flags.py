"""Flags: each is read, the released spellings work, dead ones warn, ranges are checked."""
import re
from pathlib import Path

import pytest

from recover import pick, recover
from relabel import check, convert, relabel
from report import collect, recognise, summary
from report import figures as make_figures
from report import page as report
from report import tables as make_table
from squeeze import squeeze
from sre2l.run.flags import DEAD, number_list
from sre2l.run.paths import ROOT
from tests.helpers import refused
from validate import random_real, score, train

PATHS = "sre2l/run/paths"
FLAGS = "sre2l/data/flags"
LOG = "sre2l/run/log"
SCRIPTS = {  # each with the modules that it hands args to
    "squeeze": (squeeze, FLAGS, LOG, PATHS, "sre2l/data/own"),
    "recover": (recover, "recover/plan", "recover/watch", "recover/pictures", FLAGS, LOG, PATHS,
                "sre2l/nets/teacher"),
    "relabel": (relabel, "relabel/plan", FLAGS, PATHS, "sre2l/nets/teacher"),
    "validate": (train, "validate/checks", "validate/data", "validate/student", "validate/protocol",
                 "validate/deviations", "validate/draws", "validate/losses", "validate/results",
                 FLAGS, LOG, PATHS),
    "pick": (pick, "recover/scores", FLAGS, LOG, PATHS, "sre2l/nets/teacher"),
    "check": (check, PATHS), "convert": (convert, PATHS),
    "random_real": (random_real, PATHS), "score": (score, PATHS),
    "summary": (summary, PATHS),
    "collect": (collect, PATHS), "recognise": (recognise, PATHS), "make_table": (make_table,),
    "make_figures": (make_figures,), "report": (report, PATHS)}
RELEASED = {
    "recover":
        "--arch-name resnet18 --arch-path x.pth --exp-name rn18 --syn-data-path ./syn --batch-size 100 "
        "--iteration 4000 --lr 0.25 --jitter 32 --image_shifting 32 --r-bn 0.01 --first-bn-multiplier 10 "
        "--tv-l2 0 --l2-scale 0 --ipc 50 --ipc-start 0 --ipc-end 50 --num-classes 1000 --print_period 100 "
        "--verifier --verifier-arch mobilenet_v2 --verifier-arch-path v.pth --store-best-images "
        "--store-last-images",
    "relabel":
        "-a resnet18 -b 1024 -j 8 --epochs 300 --seed 1 --gpu 0 --input-size 224 --min-scale-crops 0.08 "
        "--max-scale-crops 1 --fkd-path l --fkd-seed 42 --use-fp16 --mode fkd_save --mix-type cutmix "
        "--mixup 0.8 --cutmix 1.0 --data d",
    "validate":
        "--batch-size 1024 --gradient-accumulation-steps 2 --start-epoch 0 --epochs 300 -j 4 --train-dir t "
        "--val-dir . --output-dir o --cos --sgd -lr 0.1 --learning-rate 0.1 --momentum 0.875 --weight-decay "
        "3e-5 --adamw-lr 0.001 --adamw-weight-decay 0.01 --model resnet18 --keep-topk 1000 -T 20 "
        "--temperature 20 --fkd-path l --wandb-project p --wandb-api-key k --mix-type cutmix --fkd_seed 42",
}


def parsed(script, text=""):
    return SCRIPTS[script][0].get_args([*text.split(), *["--row", "x"] * (script == "collect")])


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_read(script):
    """Each destination is used as args.<name> in the script, or in a module that it hands args to."""
    module, *others = SCRIPTS[script]
    files = [Path(module.__file__), *(ROOT / f"{other}.py" for other in others)]
    source = "".join(file.read_text() for file in files)
    unread = [name for name in vars(parsed(script)) if not re.search(rf"args(\.|\.get\(\"){name}\b", source)]
    assert unread == []


@pytest.mark.parametrize("script", RELEASED)
def test_released_spellings_are_accepted_and_dead_ones_warn(script, capsys):
    parsed(script, RELEASED[script])
    warned = re.findall(r"warning: (\S+) has no effect", capsys.readouterr().err)
    assert set(warned) == set(DEAD[script]) & set(RELEASED[script].split())


def test_released_names_mean_what_they_meant():
    flags = "--image_shifting 5 --ipc 7 --arch-name resnet50 --verifier --verifier-arch mobilenet_v2"
    args = parsed("recover", flags)
    assert (args.jitter, args.ipc_end, args.arch, args.verifier, args.verifier_arch) == (
        5, 7, "resnet50", "", "mobilenet_v2")
    assert parsed("relabel", "--gpu 3").device == "cuda:3"


def test_defaults_are_the_published_imagenet_setting():
    args = parsed("recover")
    assert (args.iteration, args.batch_size, args.lr, args.r_bn, args.first_bn_multiplier, args.jitter) == (
        4000, 100, 0.25, 0.01, 10, 32)
    assert (args.tv_l2, args.l2_scale, args.no_crop_flip, args.ipc_end) == (0, 0, False, 50)
    args = parsed("relabel")
    assert (args.epochs, args.batch_size, args.mix_type, args.label_precision, args.fkd_seed) == (
        300, 1024, "cutmix", "fp16", 42)
    args = parsed("validate")
    assert (args.epochs, args.temperature, args.gradient_accumulation_steps) == (300, 20, 2)
    assert (args.adamw_lr, args.adamw_weight_decay) == (1e-3, 0.01)


OUT_OF_RANGE = {
    "recover": ("--batch-size 0", "--ipc-end 0", "--ipc 1001", "--iteration 0", "--lr nan", "--r-bn -1",
                "--classes 3-1", "--classes a", "--seed -1"),
    "relabel": ("--batch-size 0", "--epochs 0", "--cutmix 0", "--min-scale-crops 1.5", "--mix-type both"),
    "validate": ("--temperature 0", "-T -1", "--seeds x", "--gradient-accumulation-steps 0"),
    "squeeze": ("--epochs 0", "--batch-size 1", "--momentum 2")}


@pytest.mark.parametrize("script, text", [(key, text) for key in OUT_OF_RANGE for text in OUT_OF_RANGE[key]])
def test_values_out_of_range_are_refused(script, text, capsys):
    with pytest.raises(SystemExit) as caught:
        parsed(script, text)
    assert caught.value.code == 2
    assert text.split()[0] in capsys.readouterr().err


def test_lists_of_numbers():
    assert number_list("0-2,5,1") == [0, 1, 2, 5]


@pytest.mark.parametrize("flag", ("--compile", "--tensorboard", "--overwrite"))
def test_where_nothing_is_trained_flags_of_training_are_refused(flag):
    assert f"{flag} would do nothing" in refused(squeeze, "--dataset", "imagenet1k", "--device", "cpu", flag)

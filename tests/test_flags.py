"""Flags: each is read, the released spellings work, dead ones warn, ranges are checked."""
import re

import pytest

from report import figures as make_figures
from recover import recover
from relabel import check, relabel
from report import collect, tables as make_table, recognise
from sre2l.run.flags import DEAD, number_list
from sre2l.run.paths import ROOT
from squeeze import squeeze
from tests.helpers import refused
from validate import random_real, train
from report import page as report, summary

SCRIPTS = {"squeeze": squeeze, "recover": recover, "relabel": relabel, "check": check, "validate": train, "random_real": random_real, "summary": summary,
           "collect": collect, "recognise": recognise, "make_table": make_table, "make_figures": make_figures, "report": report}
SHARED = {  # modules of the shared package and the stage that are handed args
    "squeeze": ["squeeze/squeeze", "sre2l/data/flags", "sre2l/run/paths"],
    "recover": ["recover/recover", "recover/watch", "sre2l/data/flags", "sre2l/run/paths", "sre2l/nets/teacher"],
    "relabel": ["relabel/relabel", "sre2l/data/flags", "sre2l/run/paths", "sre2l/nets/teacher"],
    "validate": ["validate/train", "validate/checks", "validate/protocol", "validate/results", "sre2l/data/flags", "sre2l/run/paths"],
    "check": ["relabel/check", "sre2l/run/paths"],
    "random_real": ["validate/random_real", "sre2l/run/paths"],
    "summary": ["report/summary", "sre2l/run/paths"],
    "collect": ["report/collect", "sre2l/run/paths"],
    "recognise": ["report/recognise", "sre2l/run/paths"],
    "make_table": ["report/tables"],
    "make_figures": ["report/figures"],
    "report": ["report/page", "sre2l/run/paths"]}
RELEASED = {
    "recover": "--arch-name resnet18 --arch-path x.pth --exp-name rn18 --syn-data-path ./syn --batch-size 100 --iteration 4000 --lr 0.25 --jitter 32 "
               "--image_shifting 32 --r-bn 0.01 --first-bn-multiplier 10 --tv-l2 0 --l2-scale 0 --ipc 50 --ipc-start 0 --ipc-end 50 --num-classes 1000 "
               "--print_period 100 --verifier --verifier-arch mobilenet_v2 --verifier-arch-path v.pth --store-best-images --store-last-images",
    "relabel": "-a resnet18 -b 1024 -j 8 --epochs 300 --seed 1 --gpu 0 --input-size 224 --min-scale-crops 0.08 --max-scale-crops 1 --fkd-path l "
               "--fkd-seed 42 --use-fp16 --mode fkd_save --mix-type cutmix --mixup 0.8 --cutmix 1.0 --data d",
    "validate": "--batch-size 1024 --gradient-accumulation-steps 2 --start-epoch 0 --epochs 300 -j 4 --train-dir t --val-dir v --output-dir o --cos --sgd "
                "-lr 0.1 --learning-rate 0.1 --momentum 0.875 --weight-decay 3e-5 --adamw-lr 0.001 --adamw-weight-decay 0.01 --model resnet18 "
                "--keep-topk 1000 -T 20 --temperature 20 --fkd-path l --wandb-project p --wandb-api-key k --mix-type cutmix --fkd_seed 42",
}


def parsed(script, text=""):
    return SCRIPTS[script].get_args([*text.split(), *["--row", "x"] * (script == "collect")])


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_read(script):
    """Each destination is used as args.<name> in the script, or in a module that it hands args to."""
    source = "".join((ROOT / f"{module}.py").read_text() for module in SHARED[script])
    unread = [name for name in vars(parsed(script)) if not re.search(rf"args\.{name}\b", source)]
    assert unread == []


@pytest.mark.parametrize("script", RELEASED)
def test_released_spellings_are_accepted_and_dead_ones_warn(script, capsys):
    parsed(script, RELEASED[script])
    warned = re.findall(r"warning: (\S+) has no effect", capsys.readouterr().err)
    assert set(warned) == set(DEAD[script]) & set(RELEASED[script].split())


def test_released_names_mean_what_they_meant():
    args = parsed("recover", "--image_shifting 5 --ipc 7 --arch-name resnet50 --verifier --verifier-arch mobilenet_v2")
    assert (args.jitter, args.ipc_end, args.arch, args.verifier, args.verifier_arch) == (5, 7, "resnet50", "", "mobilenet_v2")
    assert parsed("relabel", "--gpu 3").device == "cuda:3"


def test_defaults_are_the_published_imagenet_setting():
    args = parsed("recover")
    assert (args.iteration, args.batch_size, args.lr, args.r_bn, args.first_bn_multiplier, args.jitter) == (4000, 100, 0.25, 0.01, 10, 32)
    assert (args.tv_l2, args.l2_scale, args.no_crop_flip, args.ipc_end) == (0, 0, False, 50)
    args = parsed("relabel")
    assert (args.epochs, args.batch_size, args.mix_type, args.label_precision, args.fkd_seed) == (300, 1024, "cutmix", "fp16", 42)
    args = parsed("validate")
    assert (args.epochs, args.temperature, args.adamw_lr, args.adamw_weight_decay, args.gradient_accumulation_steps) == (300, 20, 1e-3, 0.01, 2)


@pytest.mark.parametrize("script, text", [
    ("recover", "--batch-size 0"), ("recover", "--ipc-end 0"), ("recover", "--ipc 1001"), ("recover", "--iteration 0"), ("recover", "--lr nan"),
    ("recover", "--r-bn -1"), ("recover", "--classes 3-1"), ("recover", "--classes a"), ("recover", "--seed -1"), ("recover", "--dataset mnist"),
    ("relabel", "--batch-size 0"), ("relabel", "--epochs 0"), ("relabel", "--cutmix 0"), ("relabel", "--min-scale-crops 1.5"),
    ("relabel", "--mix-type both"), ("validate", "--temperature 0"), ("validate", "-T -1"), ("validate", "--seeds x"),
    ("validate", "--gradient-accumulation-steps 0"), ("squeeze", "--epochs 0"), ("squeeze", "--batch-size 1"), ("squeeze", "--momentum 2")])
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

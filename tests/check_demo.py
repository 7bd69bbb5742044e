"""The demo's student must earn its place.   python3 tests/check_demo.py runs/digits/summary.json"""
import json
import sys

values = json.load(open(sys.argv[1]))
sizes = values["image_bytes"], values["label_bytes"]
checks = {
    "teacher at 97 % or better": values["teacher_top1"] >= 97,
    "student on 100 images at 95 % or better": values["images"] == 100 and values["distilled_top1"] >= 95,
    "at least 10 points above hard labels": values["distilled_top1"] >= values["hard_label_top1"] + 10,
    "bytes and seconds of every stage are there": min(sizes) > 0 and min(values["seconds"].values()) > 0}
for text, passed in checks.items():
    print(f"{'ok' if passed else 'FAILED'}: {text}")
sys.exit(not all(checks.values()))

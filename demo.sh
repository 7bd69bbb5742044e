#!/bin/sh
# The whole method on the embedded digits: teacher, images, labels, student, a check, two controls, one table.
#   sh demo.sh      five to seven minutes on two CPU cores, after the first call has set up .venv
if [ $# -gt 0 ]; then echo "usage: sh demo.sh      (no arguments; sh run.sh digits takes flags)" >&2; exit 2; fi
exec sh "$(dirname "$0")/run.sh" digits --snapshot-every 5

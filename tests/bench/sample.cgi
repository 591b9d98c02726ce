#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# What the sample of the cluster's manual does, as one would port it to Python 3: the arguments by the module cgi, a
# state file of that name, a step on at each poll. Its last step is repeated here, so that it can be measured.
import os
import warnings

warnings.filterwarnings("ignore", category=DeprecationWarning)
import cgi

STEPS = ["", "start\n", "wait1\n", "wait2\n", "wait3\n"]

fields = cgi.FieldStorage(keep_blank_values=True)
core_filer = fields.getfirst("mass")
target_time = fields.getfirst("targetTime")
answer = "the arguments mass and targetTime are missing"
if core_filer and target_time:
    path = f"{os.environ['SERVER_GATHER']}/sample/{core_filer}_{target_time}"
    os.close(os.open(path, os.O_CREAT | os.O_RDWR))
    with open(path, "r+") as file:
        line = file.readline()
        step = STEPS.index(line) + 1 if line in STEPS else len(STEPS)
        answer = f"waiting ({step})"
        file.seek(0)
        file.truncate(0)
        file.write(STEPS[min(step, len(STEPS) - 1)])
print("Content-Type: text/plain")
print("Pragma: no-cache")
print("Cache-Control: no-cache, must-revalidate")
print("Expires: Sat, 26 Jul 1997 05:00:00 GMT")
print()
print(answer)

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""poll.cgi - tell a storage cluster whether the backup of a core filer is complete.

Usage: GET poll.cgi?mass=NAME&targetTime=UNIXTIME
       GET poll.cgi?mass=NAME&targetTime=UNIXTIME&done=TOKEN
       GET poll.cgi

A cluster asks about every 10 seconds. The first poll of a core filer and target time has the backup started, once,
however many nodes ask; every poll is answered in a sentence: starting, running and how far, complete, failed and why,
expired. Only the answer that it is complete holds the phrase that lets the core filer go on; where the settings say
on_failure = "release", that comes some time after a failure too. HEAD changes nothing; POST takes the arguments as a
form. Other arguments are ignored, token is asked for where the settings name one. A second ? before mass or
targetTime is taken for &.

With done=TOKEN, or failed=TOKEN, a backup says itself how it ended (backend "callback"). Without arguments people see
how all backups stand.

Reads: etc/infocluster.toml [poll] and [[core_filers]]; etc/secrets/NAME
Writes: $SERVER_GATHER/poll/DIGEST/UNIXTIME.state, or below poll.state_dir; starts backup-watch
Environment: SERVER_GATHER, REMOTE_ADDR, REQUEST_METHOD, QUERY_STRING (RFC 3875); INFOCLUSTER_CONF
Exit status: 0, and an HTTP status: 200; 400 an argument is missing or wrong; 403 not from this address or without
  token; 404 no such core filer; 405 another method; 503 the state cannot be kept now; 500 a fault of ours.
See also: backup-watch(1), status.cgi(1)
"""
import os.path, sys
sys.path.insert(0, os.path.realpath(__file__ + "/../../lib"))
from infocluster.web import cgi
cgi.run("infocluster.apps.poll:answer")

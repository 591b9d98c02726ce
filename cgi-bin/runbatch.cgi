#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""runbatch.cgi - on a development host, run a batch program and show what it says.

Usage: GET runbatch.cgi
       POST runbatch.cgi, program=NAME

For those who develop a nightly program and cannot log in where it runs. GET shows a button for each entry of
[runbatch] programs; POST runs one, as the file owner, and shows what it says on both its outputs, as it says it. The
last line tells how it ended and how long it took. One runs at a time, each within [runbatch] time_limit_s; it runs on
when the visitor goes.

Nothing can be run until programs, hosts and users are set, the web server asks for a name and a password, and sudo
lets its user do this: etc/apache.runbatch.conf and etc/sudoers.runbatch are samples of both. etc/apache.conf, for
production, refuses this address.

  curl -N -u ann --data-urlencode "program=survey-nightly" https://dev.example.org/cgi-bin/runbatch.cgi

Reads: etc/infocluster.toml [runbatch]
Writes: nothing; batch/runbatch does
Environment: REMOTE_USER, REMOTE_ADDR, REQUEST_METHOD, CONTENT_TYPE, CONTENT_LENGTH, HTTP_ORIGIN, HTTP_HOST (RFC
  3875); INFOCLUSTER_CONF, which batch/runbatch is not told of
Exit status: 0, and an HTTP status: 200 it has begun, the last line tells the rest; 403 not this address, user, page
  or program; 404 not configured on this host; 405 another method; 411, 413, 415 no form; 500 it was not run, the
  text says why; 503 another one runs.
See also: runbatch(1), sudoers(5)
"""
import os.path, sys
sys.path.insert(0, os.path.realpath(__file__ + "/../../lib"))
from infocluster.web import cgi
cgi.run("infocluster.apps.runbatch:answer")

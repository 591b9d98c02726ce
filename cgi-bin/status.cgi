#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""status.cgi - how this host's own programs stand, for people.

Usage: GET status.cgi
       GET status.cgi?format=openmetrics

Nodes, pushes, locks, backups and faults as the controller published them last, with the age of that; reports that
came to this server, and what was not taken; what is gathered here; core filers with the target times that a storage
cluster asked for: state, since when, progress, last poll, and when the next one is expected; where polls need a
token, with token=TOKEN only. It changes nothing.

Reads: etc/infocluster.toml; $SERVER_GATHER/: poll/, reports.refused, how much there is;
  DOCUMENT_ROOT/nodes/status.json, metrics.txt
Environment: SERVER_GATHER, REQUEST_METHOD (RFC 3875); INFOCLUSTER_CONF
Exit status: 0, and an HTTP status: 200; 405 another method; 500 a fault of ours.
See also: poll.cgi(1), backup-watch(1)
"""
import os.path, sys
sys.path.insert(0, os.path.realpath(__file__ + "/../../lib"))
from infocluster.web import cgi
cgi.run("infocluster.apps.status:answer")

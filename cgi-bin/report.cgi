#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""report.cgi - take a node's report into the gather queue.

Usage: POST report.cgi, a SEER/1.0 message as the body, with the headers
         X-Seer-Node: NODE          who sends it, the message's Src
         X-Seer-Id: ID              the message's Id
         X-Seer-Date: UNIXTIME      now
         X-Seer-Signature: HEX      HMAC-SHA256 by the node's key, over the lines POST, path, NODE, ID, UNIXTIME and
                                    the body's SHA-256 in hexadecimal

Answered is "stored ID" when the report is in the queue and on the disk, "duplicate ID" when it came before. What is
not taken is counted by its reason (duplicate, malformed, unknown, clock, signature, method, length, size); a node
without a key is listed as a ghost by status.cgi.

Reads: etc/infocluster.toml [aggregate]; etc/secrets/nodes/NODE
Writes: $SERVER_GATHER/reports/, reports.nodes/NODE, reports.refused
Environment: SERVER_GATHER, REMOTE_ADDR, HTTP_X_SEER_* and others of RFC 3875; INFOCLUSTER_CONF
Exit status: 0, and an HTTP status: 200; 400 no message; 403 unknown node, clock or signature wrong; 405 another
  method; 411, 413 length; 503 it cannot be kept now, send it again; 500 a fault of ours.
See also: node-report(1), controller(1)
"""
import os.path, sys
sys.path.insert(0, os.path.realpath(__file__ + "/../../lib"))
from infocluster.web import cgi
cgi.run("infocluster.apps.report:answer")

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""request.cgi - ask an aggregator, or for the updates since a revision.

Usage: GET request.cgi?type=TYPE[&NAME=VALUE...]
       GET request.cgi?type=File&name=NAME[&node=NODE][&format=raw]
       GET request.cgi?updates[&since=REVISION][&epoch=EPOCH]

TYPE is one that an aggregator answers: FileList, File, Counters, Health, and those of your own modules; their other
arguments are theirs. The answer is JSON, or protobuf where Accept names application/x-protobuf, with an ETag. With
format=raw it is what the file holds.

It comes from the controller, where its socket is on this host; from what it published, with an Age, elsewhere.

Reads: etc/infocluster.toml [aggregate]; DOCUMENT_ROOT/nodes/answer-*.json, *.pb, updates.json
Environment: DOCUMENT_ROOT, QUERY_STRING, HTTP_ACCEPT, HTTP_IF_NONE_MATCH (RFC 3875); INFOCLUSTER_CONF
Exit status: 0, and an HTTP status: 200; 304 the client has it; 400 no such question; 404 nothing of this kind; 405
  another method; 503 with Retry-After, nobody can answer; 500 a fault of ours.
See also: controller(1), report.cgi(1), status.cgi(1)
"""
import os.path, sys
sys.path.insert(0, os.path.realpath(__file__ + "/../../lib"))
from infocluster.web import cgi
cgi.run("infocluster.apps.request:answer")

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""survey.cgi - note the visitor's browser, show what the last night counted.

Usage: GET survey.cgi

A visit is one record, its User-Agent and time, in the gather directory of this server. The page is the summary that
survey-nightly published and wwwpush brought here; before the first night it is a sentence that says so. HEAD answers
as GET does and notes nothing.

Reads: etc/infocluster.toml; DOCUMENT_ROOT/survey/summary.html
Writes: $SERVER_GATHER/survey/YYYY-MM-DD.jsonl, under $SERVER_GATHER/survey.lock
Environment: SERVER_GATHER, DOCUMENT_ROOT, HTTP_USER_AGENT, REQUEST_METHOD (RFC 3875); INFOCLUSTER_CONF
Exit status: 0, and an HTTP status: 200; 405 another method; 503 the visit cannot be noted now; 500 a fault of ours.
See also: survey-nightly(1)
"""
import os.path, sys
sys.path.insert(0, os.path.realpath(__file__ + "/../../lib"))
from infocluster.web import cgi
cgi.run("infocluster.apps.survey:answer")

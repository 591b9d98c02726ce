#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""moderate.cgi - take a person's word on whether an answer to a form is published.

Usage: GET moderate.cgi/NAME?LINK
       POST moderate.cgi/NAME?LINK

The letters of forms-nightly have a link here for each answer that waits for somebody's word. It shows two buttons and
by itself changes nothing; what is pressed is on the disk before it is confirmed, and counts from the next run of
forms-nightly on. Who has the letter may decide, for 60 days after the answer, as often as he likes: the last word
counts. There is no password: a link is signed, for one answer to one form.

Reads: etc/infocluster.toml; etc/forms/NAME.toml, NAME.toml.compiled; etc/secrets/forms
Writes: $SERVER_GATHER/decisions-NAME/YYYY-MM-DD.jsonl, under $SERVER_GATHER/decisions-NAME.lock
Environment: SERVER_GATHER, PATH_INFO, QUERY_STRING, REQUEST_METHOD, CONTENT_TYPE, CONTENT_LENGTH, HTTP_ORIGIN,
  HTTP_HOST (RFC 3875); INFOCLUSTER_CONF
Exit status: 0, and an HTTP status: 200; 403 no link of ours, too old, or from another site; 404 no such form; 405
  another method; 411, 413, 415, 422 a body that is no decision; 503 it cannot be kept now; 500 a fault of ours.
See also: forms-nightly(1), form.cgi(1)
"""
import os.path, sys
sys.path.insert(0, os.path.realpath(__file__ + "/../../lib"))
from infocluster.web import cgi
cgi.run("infocluster.apps.forms_moderation:answer")

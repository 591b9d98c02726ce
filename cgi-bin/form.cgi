#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""form.cgi - show a declared form, and take what was answered.

Usage: GET form.cgi/NAME
       POST form.cgi/NAME

What etc/forms/NAME.toml declares is shown, and checked, by this program; nobody writes another one. A good answer is
on the disk before the visitor is sent on to the page of thanks (303). One that is not as it has to be gets the form
again (422): what is wrong stands beside its field, and what was typed is kept, files apart. Files are told by their
first bytes and never named by the visitor. No script, no cookie and no other site is needed. A form that was sent
twice counts once; machines that fill every field, send at once or from another site are not taken, nor more
answers an hour from one address than the form allows.

Reads: etc/infocluster.toml; etc/forms/NAME.toml, NAME.toml.compiled, *.html; etc/secrets/forms
Writes: $SERVER_GATHER/form-NAME/YYYY-MM-DD.jsonl, under $SERVER_GATHER/form-NAME.lock, or form-NAME/ID.json;
  form-NAME.files/ID-FIELD-N.TYPE; form-NAME.rate/HOUR
Environment: SERVER_GATHER, DOCUMENT_ROOT, PATH_INFO, REQUEST_METHOD, CONTENT_TYPE, CONTENT_LENGTH, HTTP_ORIGIN,
  HTTP_HOST, REMOTE_ADDR (RFC 3875); INFOCLUSTER_CONF
Exit status: 0, and an HTTP status: 200; 303 taken; 400 a body that is not whole; 403 from another site; 404 no such
  form; 405 another method; 411, 413, 415 a body of no length, too large, of another type; 422 see there; 429 too
  often; 503 it cannot be kept now; 500 a fault of ours.
See also: forms-nightly(1)
"""
import os.path, sys
sys.path.insert(0, os.path.realpath(__file__ + "/../../lib"))
from infocluster.web import cgi
cgi.run("infocluster.apps.forms:answer")

# SPDX-License-Identifier: Apache-2.0
"""People who fill the guest book under Apache, each in a process of its own."""

import http.client
import random
import time
from urllib.parse import urlencode

from cgi_bin import form_site
from cgi_bin.form_site import BODIES
from infocluster.apps import forms_token


def send(port: int, kind: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/cgi-bin/form.cgi/guestbook", body, {"Content-Type": kind})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def person(number: int, port: int, seconds: float) -> tuple[list[int], set[str]]:
    """Send forms, some of them twice, some with a picture; return all statuses, and the ids that were thanked for."""
    mine, statuses, acknowledged = random.Random(number), [], set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        token = forms_token.issue("guestbook", time.time() - 30, form_site.SECRET)
        answer_id = forms_token.record_id(token)
        entry = f"entry {answer_id} {'x' * mine.randrange(1, 900)}"
        fields = {"form_token": token, "name": f"person {number}", "entry": entry}
        kind, body = "application/x-www-form-urlencoded", urlencode(fields).encode()
        if mine.random() < 0.3:
            variables, body = form_site.body_of(BODIES / "303-safari-multipart.body", token)
            kind, body = variables["CONTENT_TYPE"], body.replace(b"one\r\ntwo", entry.encode())
        for _ in range(2 if mine.random() < 0.2 else 1):
            statuses.append(send(port, kind, body))
            if statuses[-1] == 303:
                acknowledged.add(answer_id)
    return statuses, acknowledged

# SPDX-License-Identifier: Apache-2.0
"""The gateway round every program of cgi-bin/: from the server's variables to one written reply.

The work is done before the reply, since the server kills what runs on after it; then head and body are written at
once and the process leaves without tearing the interpreter down, which a visitor would wait for. What an answer
streams is written as it comes.

Source: RFC 3875.
"""

import posix
import sys

from infocluster import files
from infocluster.errors import InfoclusterError
from infocluster.web.request import Request
from infocluster.web.response import HttpError, Response, error_page

SENTENCES = {
    400: "The server could not understand the request.",
    403: "This is not allowed.",
    500: "Something went wrong on the server.",
    503: "The server cannot take this now. Please try again in a minute.",
}
RETRY_AFTER_S = "60"
HELP = ("-help", "--help", "-h")


def run(handler: str) -> None:
    """Answer the request that started this process, and leave; to a person who asks for help, show the manual.

    A server sets GATEWAY_INTERFACE, and may pass words of a query as arguments: no visitor gets the manual.

    Args:
        handler: ``"module:function"``; the function takes a `Request` and returns a `Response`.

    Returns:
        Never. The exit status is 0 once a valid reply is written, whatever the reply is.
    """
    if len(sys.argv) > 1 and sys.argv[1] in HELP and b"GATEWAY_INTERFACE" not in posix.environ:
        print(str(sys.modules["__main__"].__doc__).strip(), flush=True)
        posix._exit(0)
    request = Request(posix.environ)
    is_head = request.method == "HEAD"
    try:
        response = answer(handler, request)
        message = response.message(is_head)
    except Exception:  # the last door: nothing leaves without an answer
        response = failed()
        message = response.message(is_head)
    request.drain()
    try:
        files.write_all(1, message)
        if response.stream is not None and not is_head:
            for chunk in response.stream:
                files.write_all(1, chunk)
    except OSError:  # the visitor is gone; the work was done before
        posix._exit(0)
    except Exception:  # in the midst of a stream: the visitor has a part of it, the log the rest
        failed()
    posix._exit(0)


def answer(handler: str, request: Request) -> Response:
    """Call a handler and return its answer, or the page of what went wrong."""
    try:
        module_name, _, function_name = handler.partition(":")
        __import__(module_name)
        response: Response = getattr(sys.modules[module_name], function_name)(request)
        return response
    except HttpError as error:
        return error_page(error.http_status, str(error), error.fields)
    except InfoclusterError as error:
        return error_page(*told(error))
    except Exception:  # a fault of ours: the traceback to the log, a sentence to the visitor
        return failed()


def told(error: InfoclusterError) -> "tuple[int, str, tuple[tuple[str, str], ...]]":
    """Write an error to the error log, and return the status, sentence and header fields for the visitor."""
    status = error.http_status
    again = (("Retry-After", RETRY_AFTER_S),) if status == 503 else ()
    return status, f"{SENTENCES[status]} (Incident {log(str(error))})", again


def failed() -> Response:
    """Write the exception that is being handled to the error log and return the page that says so."""
    import traceback

    return error_page(500, f"{SENTENCES[500]} (Incident {log(traceback.format_exc())})")


def log(text: str) -> str:
    """Write to the server's error log, one line a line of text, and return the incident's number."""
    incident = posix.urandom(4).hex()
    program = posix.environ.get(b"SCRIPT_NAME", b"cgi").decode("utf-8", "replace").rpartition("/")[2]
    for line in text.rstrip().split("\n"):
        clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)
        try:
            files.write_all(2, f"{program}: incident {incident}: {clean}\n".encode("utf-8", "replace"))
        except OSError:  # no error log: the visitor still gets an answer
            break
    return incident

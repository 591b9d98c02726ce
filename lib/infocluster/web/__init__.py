# SPDX-License-Identifier: Apache-2.0
"""Web: the life of one request.

1. The web server starts a program of cgi-bin/, which names its handler and calls `cgi.run`.
2. `request` is what the server said (RFC 3875 variables, a body of a stated length) and what it may not say.
3. The handler, a plain function of an application, does the work and returns a `response`; a wrong request
   ends in an `HttpError`.
4. `cgi` writes head and body at once and leaves. What went wrong goes to the error log with an incident
   number; the visitor gets a sentence and that number.
5. `devserver` is a web server for one machine: it runs the same programs as processes.
"""

# SPDX-License-Identifier: Apache-2.0
"""Cron: the life of one run of a program in batch/.

1. A clock or a person starts the program, which names its handler and calls `command.run`.
2. `usage` reads the program's own manual, its docstring, and the arguments against it. Help, the version and a wrong
   argument are answered here, before anything is loaded that takes time.
3. `command` loads the settings and takes the program's lock: where one run is under way, another one leaves with 75.
4. The handler, a plain function of an application, gets a `command.Run`: settings, arguments, a way to say a
   line, a way to report an item that failed, and `progress.bar`, which shows something on a terminal only.
5. What the handler returns is the run's one-line summary; what it raises is one line and an exit status.
"""

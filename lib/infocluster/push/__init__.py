# SPDX-License-Identifier: Apache-2.0
"""Push: how a part of the production tree gets to every server.

1. Somebody names paths, such as ``world/sample``, or every tree. `run` checks them: below a tree, through no
   symbolic link, a whole tree only where all was asked for.
2. It takes the path locks, all or none, in the order of arrival, and says who is being waited for. From here on no
   install, publish or other push is in these paths.
3. What publishes that were killed left there is completed, so that the servers get a job's files together.
4. The paths are read once. What others may not read is left out: a server that cannot read it could not serve it.
5. `transport` brings them to each server, several servers at once: what is new or changed first, then it removes
   what is gone here, below the named paths only. A server that fails or takes too long stands alone with that.
6. Each server's result is told, equal ones in one line (``web[1-3]: ok, 12 files``), and a record of the push is left
   in STATE_DIR/pushes. The exit status is 0 only if every server has everything.
"""

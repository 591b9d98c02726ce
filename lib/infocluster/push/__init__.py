# SPDX-License-Identifier: Apache-2.0
"""Push: how a part of the production tree gets to every server.

1. Somebody names paths, such as ``world/sample``, or every tree. `plan` checks them: below a tree, a whole tree only
   where all was asked for. `servers` unfolds the node sets; `skeleton` reads what a kind of server does not get, in
   the grammar of `distfile`.
2. `run` takes the path locks, all or none, in the order of arrival, and says who is being waited for. From here on no
   install, publish or other push is in these paths. What publishes that were killed left there is completed.
3. The paths are read once for each kind of server. What others may not read is left out: a server that cannot read it
   could not serve it.
4. A slot is taken, of those that this host has for pushes. The `ledger` notes that the servers lack the paths, until
   they have them.
5. `fan` serves several servers at once, and again where one could not be reached; with push hosts, `shares` deals the
   servers out to them, and each `relay` serves its own. A `transport` brings the listing to one server, as an
   `order` says: a directory here, `rsync` over `ssh` or to a daemon, or `rdist`. It puts what is new or changed in
   place first, then removes what is gone here, below the named paths only. A server that fails or takes too long
   stands alone with that.
6. `specials` runs on the servers what their skeleton asks for.
7. `manifest` keeps what each server has now, for ``-quick``; the ledger crosses out what it no longer lacks. Each
   server's result is told, equal ones in one line (``web[1-3]: ok, 12 files``), and `record` leaves one of the push
   in STATE_DIR/pushes, which `status` shows. The exit status is 0 only if every server has everything.

`verify` compares contents with what the servers have; `serve` lets others push by ssh, paths only.
"""

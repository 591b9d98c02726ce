# SPDX-License-Identifier: Apache-2.0
"""Aggregate: the life of one report, from a node to a page that follows it.

1. On a node, the collectors that `modules` loads say what they see; each answer becomes a REPORT (`wire`) in the
   node's own spool, and leaves it in order, signed by the node's key (`signing`), when a web server has taken it.
2. On that web server, `intake` puts it into a gather queue, once and durable before the answer; what is not
   taken is counted by its reason in `refusals`.
3. On the batch host, `reports` finds what is new in every server's queue, in the order of time, without a lock and
   without a change.
4. The `controller` owns one instance of each aggregator (`base`). It delivers the report; what an aggregator keeps
   through saveData is committed to the `store` together with the report's id: once, whatever is killed when. A report
   that an aggregator cannot take is set aside with the reason, and the others get it.
5. Every few seconds the aggregators are asked for updates; each gets a revision that grows for ever. `answers` makes
   JSON of what they give, for updates and for requests.
6. The controller tells the servers which parts of their queues were read; `sweep` on each server drops those.
"""

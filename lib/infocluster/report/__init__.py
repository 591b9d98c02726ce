# SPDX-License-Identifier: Apache-2.0
"""Report: the life of what a nightly job found.

1. `tables` adds what the night counted to the day, its week, its month and to always, in the application's database,
   and remembers which periods have changed since they were published.
2. The job publishes those, and leaves a finding for the mail: `findings` keeps title, sentences, tables, faults and
   links in one file.
3. mail-report reads the findings that wait, in the order of their time, and writes one letter of them; `plain` lays
   out its text, with tables that a terminal shows straight.
4. Only when that letter is durable are its findings forgotten.
"""

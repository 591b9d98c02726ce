# SPDX-License-Identifier: Apache-2.0
# Every target sets up what it needs. make help says what there is.

PREFIX  ?= /opt/infocluster
DESTDIR ?=
EXTRAS  ?= batch
# The interpreter of the virtual environment and of installed programs; by default /usr/bin/python3.
PYTHON  ?=
# What a single call may add: make test ARGS="tests/locks -k holder", make bench WHAT=hit.
ARGS    ?=
WHAT    ?=
# For make demo: a file of hits to replay, and 1 to leave the site running.
HITS    ?=
SERVE   ?=

BUILD := build
VENV  := $(BUILD)/venv
RUN   := PYTHONPATH=lib $(VENV)/bin/python
# Compiled code of an installation leaves out where in a line an error is: a hit reads a tenth less.
INSTALL := PYTHONNODEBUGRANGES=1 $(RUN) -m infocluster.apps.installation
DEMO  := $(CURDIR)/$(BUILD)/demo

.DELETE_ON_ERROR:
.PHONY: help demo test test-slow lint bench install man sample clean environment packages

help:
	@echo "make demo [HITS=FILE] [SERVE=1]  a whole cluster on this machine: hits, a night, a push, and what came of it"
	@echo "make test [ARGS=...]             every test but the slow ones"
	@echo "make test-slow                   the slow ones"
	@echo "make lint                        format, rules and types of the source"
	@echo "make bench [WHAT=NAME]           how fast, against the floor and the peers, in the same run"
	@echo "make install PREFIX=DIR [DESTDIR=DIR] [PYTHON=FILE] [EXTRAS=batch]"
	@echo "                                 a tree that a web server or a batch host runs from"
	@echo "make man                         the man pages, in build/man"
	@echo "make sample                      etc/infocluster.toml from the table of settings"
	@echo "make clean                       remove build/"

environment:
	@.ci/environment $(VENV) $(PYTHON)

packages:
	@.ci/packages

demo: environment
	@$(INSTALL) --prefix "$(DEMO)" --python "$(PYTHON)" --extras batch
	@PYTHONPATH=lib:tests $(VENV)/bin/python tests/demo/play.py $(if $(HITS),--hits "$(HITS)") $(if $(SERVE),--serve) "$(DEMO)"

test: environment packages
	$(VENV)/bin/python -m pytest -q -n auto --dist loadgroup -m "not slow" $(ARGS)

test-slow: environment packages
	$(VENV)/bin/python -m pytest -q -n auto --dist loadgroup -m slow $(ARGS)

lint: environment
	$(VENV)/bin/python -m ruff format --check lib tests
	$(VENV)/bin/python -m ruff check lib tests $(wildcard cgi-bin/* batch/*)
	$(VENV)/bin/python -m mypy

bench: environment
	@$(INSTALL) --prefix "$(CURDIR)/$(BUILD)/bench" --python "$(PYTHON)" --extras batch,dask >/dev/null
	@$(VENV)/bin/python tests/bench/run.py $(WHAT)

install: environment
	@$(INSTALL) --prefix "$(PREFIX)" --destdir "$(DESTDIR)" --python "$(PYTHON)" \
	    --extras "$(EXTRAS)"

man: environment
	@$(RUN) -m infocluster.apps.manual $(BUILD)/man

# After a change of the table in lib/infocluster/settings.py.
sample: environment
	@$(RUN) -c "from infocluster import settings; print(settings.sample(), end='')" >etc/infocluster.toml

clean:
	rm -rf $(BUILD) .mypy_cache .ruff_cache .pytest_cache .hypothesis

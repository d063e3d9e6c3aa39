# Coldframe: everything a developer or an installer types. `make` alone lists it.

PYTHON ?= $(firstword $(shell command -v python3.11 python3))
VENV ?= .venv
PREFIX ?= /usr/local
DESTDIR ?=
SYSCONFDIR ?= /etc

BIN := $(VENV)/bin
READY := $(VENV)/.ready
LIB := $(PREFIX)/lib/coldframe
BUILD := build
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
SHELL_FILES := $(wildcard hooks/qemu .ci/*)
COMMANDS := coldframe coldframe-agent coldframe-controller
UNITS := coldframe-agent.service coldframe-controller.service
LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --no-config --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate

# Paths below are used relative to the working tree, whatever the caller's umask or locale.
export LC_ALL = C.UTF-8
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help as-root deps venv bytecode demo demo-fleet test test-slow lint bench install uninstall dist lock clean

help: ## list what can be done here
	@echo "Coldframe $(VERSION). Targets:"
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r target what; do printf '%-18s %s\n' "$$target" "$$what"; done
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)"

deps: ## install the system packages (apt or dnf; sudo when not root)
	@.ci/deps

venv: $(READY) ## make the virtual environment from requirements.lock

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No python3.11 or python3 on the PATH; try: make deps, or make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/pip install -q --require-hashes -r requirements.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

# By whoever runs make: as root no byte code is written (.ci/as-root), and a thousand processes would each compile anew.
bytecode: venv
	@$(BIN)/python -m compileall -q agent controller tests

# First of all, so that whoever cannot be root is told before anything is downloaded.
as-root:
	@.ci/as-root true

demo: as-root deps bytecode ## show the main job on a private host with a real VM
	@.ci/as-root $(BIN)/python -m tests.e2e.demo

demo-fleet: as-root deps bytecode ## show two hosts: a tree, a middle delete, a clone, an archive, a move
	@.ci/as-root $(BIN)/python -m tests.e2e.demo_fleet

test: as-root deps bytecode ## run the tests, real libvirt, QEMU, OVMF and swtpm included
	@.ci/as-root $(BIN)/python -m pytest -q -p no:cacheprovider -n 5 --dist loadgroup -m "not slow" --whole-run $(ARGS)

test-slow: as-root deps bytecode ## run the long storms that `make test` leaves out
	@.ci/as-root $(BIN)/python -m pytest -q -p no:cacheprovider -n 4 --dist loadgroup -m slow $(ARGS)

lint: deps venv ## check format, style, types and shell scripts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	shellcheck $(SHELL_FILES)

bench: as-root deps bytecode ## measure snapshots against virsh; writes build/bench.json
	@mkdir -p $(BUILD)
	@.ci/as-root $(BIN)/python -m tests.bench

install: ## install below PREFIX (and DESTDIR), with units, hook and example configuration
	@test -n "$(PYTHON)" || { echo "No python3.11 or python3 on the PATH; try: make PYTHON=..."; exit 1; }
	install -d "$(DESTDIR)$(LIB)" "$(DESTDIR)$(PREFIX)/bin"
	$(PYTHON) -m venv --clear "$(DESTDIR)$(LIB)/venv"
	"$(DESTDIR)$(LIB)/venv/bin/pip" install -q --no-compile --require-hashes -r requirements-run.lock
	rm -rf $(BUILD)/lib
	"$(DESTDIR)$(LIB)/venv/bin/pip" install -q --no-compile --no-deps .
	@# A staged environment must not remember where it was staged.
	test -z "$(DESTDIR)" || grep -rlI --null -F "$(DESTDIR)" "$(DESTDIR)$(LIB)/venv/bin" "$(DESTDIR)$(LIB)/venv/pyvenv.cfg" | \
		xargs -0r sed -i 's|$(DESTDIR)||g'
	"$(DESTDIR)$(LIB)/venv/bin/python" -m compileall -q $(if $(DESTDIR),-s "$(DESTDIR)" -p /) "$(DESTDIR)$(LIB)/venv/lib"
	for command in $(COMMANDS); do ln -sfn "$(LIB)/venv/bin/$$command" "$(DESTDIR)$(PREFIX)/bin/$$command"; done
	install -d "$(DESTDIR)$(PREFIX)/lib/systemd/system"
	for unit in $(UNITS); do \
		sed 's|@bindir@|$(PREFIX)/bin|; s|@sysconfdir@|$(SYSCONFDIR)|' systemd/$$unit \
			> "$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit"; \
		chmod 0644 "$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit"; done
	install -D -m 0644 systemd/sysusers.conf "$(DESTDIR)$(PREFIX)/lib/sysusers.d/coldframe.conf"
	install -D -m 0644 systemd/tmpfiles.conf "$(DESTDIR)$(PREFIX)/lib/tmpfiles.d/coldframe.conf"
	install -D -m 0755 hooks/qemu "$(DESTDIR)$(SYSCONFDIR)/libvirt/hooks/qemu.d/50-coldframe"
	install -d -m 0755 "$(DESTDIR)$(SYSCONFDIR)/coldframe"
	for daemon in agent controller; do \
		install -m 0644 systemd/$$daemon.toml "$(DESTDIR)$(SYSCONFDIR)/coldframe/$$daemon.toml.example"; \
		test -e "$(DESTDIR)$(SYSCONFDIR)/coldframe/$$daemon.toml" || \
			install -m 0640 systemd/$$daemon.toml "$(DESTDIR)$(SYSCONFDIR)/coldframe/$$daemon.toml"; done
	@test -n "$(DESTDIR)" || .ci/after-install

uninstall: ## remove what install put there; configuration and data stay
	@test -n "$(DESTDIR)" || ! test -d /run/systemd/system || systemctl disable --now $(UNITS) || true
	rm -f "$(DESTDIR)$(SYSCONFDIR)/libvirt/hooks/qemu.d/50-coldframe" "$(DESTDIR)$(SYSCONFDIR)/libvirt/hooks/qemu.d/50-coldframe.conf"
	for unit in $(UNITS); do rm -f "$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit"; done
	rm -f "$(DESTDIR)$(PREFIX)/lib/sysusers.d/coldframe.conf" "$(DESTDIR)$(PREFIX)/lib/tmpfiles.d/coldframe.conf"
	for command in $(COMMANDS); do rm -f "$(DESTDIR)$(PREFIX)/bin/$$command"; done
	rm -rf "$(DESTDIR)$(LIB)"
	rm -f "$(DESTDIR)$(SYSCONFDIR)/coldframe/agent.toml.example" "$(DESTDIR)$(SYSCONFDIR)/coldframe/controller.toml.example"
	@echo "Left in place: $(SYSCONFDIR)/coldframe, /var/lib/coldframe"

dist: venv ## build the wheel and the source archive into dist/
	rm -rf dist $(BUILD)/lib
	$(BIN)/python -m build --no-isolation --outdir dist .

lock: ## renew requirements.lock and requirements-run.lock from pyproject.toml
	$(PYTHON) -m venv $(BUILD)/lock
	$(BUILD)/lock/bin/pip install -q uv
	$(BUILD)/lock/bin/$(LOCK) --all-extras --upgrade -o requirements.lock
	$(BUILD)/lock/bin/$(LOCK) --extra agent --extra controller -c requirements.lock -o requirements-run.lock

clean: ## remove what was built here, the virtual environment included
	rm -rf $(VENV) $(BUILD) dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find agent controller tests -name __pycache__ -type d -prune -exec rm -rf {} +

# autoip: everything from a fresh Debian machine with git and make. `make` lists the targets.

VENV := .venv
PY := $(VENV)/bin/python
# Test processes side by side. The tests mostly wait for the timers of the RFC.
JOBS ?= 10
# Cases of the conformance suite side by side. They do little else than wait.
CASES ?= 12

# An existing environment stays, whatever Python made it, unless PYTHON names another.
ifdef PYTHON
ifneq ($(shell cat $(VENV)/.made 2>/dev/null),$(PYTHON))
REMAKE := remake
endif
endif
PYTHON ?= python3
export PYTHON

EXTENSION := $(wildcard csrc/*.c csrc/*.h csrc/*.py csrc/warnings csrc/system_calls)
C_SOURCES := $(filter-out csrc/_%,$(wildcard csrc/*.c))
C_FLAGS := -std=gnu11 -O2 -D_GNU_SOURCE -pthread -Icsrc @csrc/warnings -Werror
C_FORMATTED := $(C_SOURCES) $(wildcard csrc/*.h tests/c/*.[ch] bench/*.c attack/native/*.[ch])
SHELL_FILES := $(wildcard .ci/run share/completions/*.bash share/autoip.init share/autoip.openrc tools/*.sh) \
	$(shell grep -lsE '^\#!.*[/ ](ba|da)?sh( |$$)' debian/* hooks/* hooks/*/* conformance/adapters/*)
# The sanitizers of older compilers cannot place their shadow memory where the kernel spreads its
# mappings over 32 bits; a container may forbid to ask for less.
NO_ASLR := $(shell setarch -R true 2>/dev/null && echo setarch -R)
# Targets that do not need one another, the output of each in one piece.
SIDE_BY_SIDE := $(MAKE) --no-print-directory -j $(shell nproc) --output-sync=target
C_TESTS := $(SIDE_BY_SIDE) -C tests/c
TESTS := $(PY) -m pytest -n $(JOBS) --dist loadgroup
# Without a cache nothing is left outside of this folder.
PIP := $(PY) -m pip --disable-pip-version-check --no-input --no-cache-dir -q

CONFORMANCE := $(PY) -m pytest -p no:cacheprovider -n $(CASES) conformance
# Of autoip all rows must hold.
AUTOIP_ROWS := -q --all-rows --dut "conformance/adapters/autoip {netns} {ifname}"
PROGRAMS ?= $(notdir $(basename $(wildcard conformance/adapters/*.json)))

# Where `make install` puts things. DESTDIR is for packagers.
PREFIX ?= /usr/local
BINDIR := $(PREFIX)/bin
PROGRAMDIR := $(PREFIX)/lib/autoip
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
MANDIR := $(PREFIX)/share/man
BASHDIR := $(PREFIX)/share/bash-completion/completions
ZSHDIR := $(PREFIX)/share/zsh/site-functions
FISHDIR := $(PREFIX)/share/fish/vendor_completions.d
EXAMPLEDIR := $(PREFIX)/share/doc/autoip/examples

# How to become root: not at all when root, else sudo.
UID := $(shell id -u)
ifneq ($(UID),0)
AS_ROOT := $(shell command -v sudo)
ifneq ($(AS_ROOT),)
# A program that runs as root must not leave compiled modules of root's in this folder.
AS_ROOT += env PYTHONDONTWRITEBYTECODE=1
else
AS_ROOT := sh -c 'echo >&2 "autoip: this needs root and there is no sudo: run make as root"; exit 1' --
endif
else
# Root in a user's folder (sudo make ...): the owner makes the files in it, and the files that the tests leave
# in it are given to the owner, who could neither clean nor build otherwise.
OWNER := $(shell stat -c %U .)
ifeq ($(filter root UNKNOWN,$(OWNER)),)
AS_OWNER := runuser -u $(OWNER) -- env HOME=$(shell getent passwd $(OWNER) | cut -d: -f6)
GIVE_BACK := trap 'find . -user root -exec chown -h $(OWNER): {} +' EXIT;
export PYTHONDONTWRITEBYTECODE := 1
endif
endif

# The groups of Debian packages of tools/deps.sh that a target needs: the first make installs them all at once.
NEEDS := build
run: NEEDS += $(if $(strip $(IFACE)),,demo)
deb: NEEDS := deb
release: NEEDS := build deb
test bench conformance: NEEDS += test
check: NEEDS += check
bench: NEEDS += bench
attack fuzz chaos scale party: NEEDS += test attack
DEPS = @bash tools/deps.sh $(NEEDS)

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo
	@echo '  make run IFACE=eth0                         an address for eth0, until Ctrl-C'
	@echo '  make run IFACE="eth0 eth1" ARGS="--debug"   several interfaces, more options'
	@echo '  make test PYTHON=python3.12                 another Python'

setup: $(VENV)/.ready ## make .venv and build the extension, if need be

run: setup ## run on IFACE, with ARGS; without IFACE: the demo
ifneq ($(strip $(IFACE)),)
	@exec $(AS_ROOT) env --block-signal=SIGINT,SIGTERM $(PY) -m autoip $(IFACE) $(ARGS)
else
	$(DEPS)
	@# Where users may make namespaces, the demo is root in one of its own.
	@if unshare --user --map-root-user --net true 2>/dev/null; then exec $(PY) -m demo $(ARGS); \
	else exec $(AS_ROOT) $(PY) -m demo $(ARGS); fi
endif

# The conformance suite waits, so the unit tests run beside it; niced, because the suite measures times. With ARGS all
# is one run of pytest.
test: $(VENV)/.dev ## all tests: C, then pytest (those that need root are skipped without)
	$(DEPS)
	$(GIVE_BACK) $(C_TESTS) check
ifeq ($(strip $(ARGS))$(UID),0)
	$(GIVE_BACK) $(SIDE_BY_SIDE) -j 3 test-conformance test-defence test-units
	$(GIVE_BACK) $(TESTS) tests/booted tests/netns
else
	$(GIVE_BACK) $(TESTS) $(ARGS)
endif

test-units:
	nice -n 10 $(TESTS) tests/unit

test-conformance:
	$(CONFORMANCE) $(AUTOIP_ROWS)

test-defence: # as on a kernel without tcx
	WITHOUT=tcx $(CONFORMANCE)/test_defence.py $(AUTOIP_ROWS)

# Coverage doubles the time of a test: those that need much and add no line run in `make test` alone.
check: $(VENV)/.dev ## linters, types, formats, coverage of the unit tests, C warnings, sanitizers, valgrind
	$(DEPS)
	@$(SIDE_BY_SIDE) $(CHECKS)
	$(GIVE_BACK) $(PY) -m coverage erase
	$(GIVE_BACK) $(PY) -m coverage run -m pytest -q -n $(JOBS) -m 'not heavy' tests/unit
	$(GIVE_BACK) $(PY) -m coverage combine -q
	$(PY) -m coverage report --skip-covered
	@$(PY) -m coverage report --include='autoip/daemon/*' --fail-under=85 >/dev/null
	$(GIVE_BACK) $(NO_ASLR) $(C_TESTS) asan tsan
	$(GIVE_BACK) $(C_TESTS) valgrind

CHECKS := check-types check-python check-shell check-format check-gcc check-clang
check-types:
	$(PY) -m mypy --strict

check-python:
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

check-shell:
	shellcheck $(SHELL_FILES)

check-format:
	$(VENV)/bin/clang-format --dry-run --Werror $(C_FORMATTED)

check-gcc check-clang: check-%:
	@! command -v $* >/dev/null || for file in $(C_SOURCES); do \
		echo "$* @csrc/warnings -Werror $$file"; \
		$* $(C_FLAGS) -c -o /dev/null $$file || exit 1; \
	done

mutate: $(VENV)/.dev ## change one thing at a time in autoip/core: do its unit tests notice? (ARGS="--sample 150": a part)
	$(GIVE_BACK) $(PY) -m tools.mutate $(ARGS)

# Not the environment's.
NAME :=
bench: $(VENV)/.dev ## the benchmarks, each beside what it is measured against (root; NAME=fallback: one of them)
	$(DEPS)
	@exec $(AS_ROOT) $(PY) -m bench $(NAME) $(ARGS)

# How long each attack lasts, in seconds.
TIME ?= 60
ATTACKS := fuzz chaos scale party

attack: $(ATTACKS) ## all of the attacks that follow, each for TIME=60 seconds

fuzz: ## bytes that nobody would send, for the C helper, both BPF programs and each parser
chaos: ## kills at every moment, stops over deadlines, storms, a link that flaps (root)
scale: ## thousands of hosts on a virtual link, switched on at once
party: ## twenty real programs of five kinds on one bridge, round after round (root)
$(ATTACKS): $(VENV)/.dev
	$(DEPS)
	$(GIVE_BACK) $(if $(filter fuzz scale,$@),,$(AS_ROOT)) $(PY) -m attack $@ --time $(TIME) $(ARGS)

# Status 1: a program falls short of a MUST, which is not a failure of the measurement.
conformance: $(VENV)/.dev ## measure autoip and other programs anew, for docs/conformance.md (root)
	$(DEPS)
	@mkdir -p conformance/reports
	@for program in $(PROGRAMS); do \
		$(AS_ROOT) $(CONFORMANCE) --dut "conformance/adapters/$$program {netns} {ifname}" \
			--report conformance/reports/$$program.json --tb=no || [ $$? = 1 ] || exit 1; \
	done
	@for without in $(if $(filter autoip,$(PROGRAMS)),tcx bpf); do \
		$(AS_ROOT) env WITHOUT=$$without $(CONFORMANCE) $(AUTOIP_ROWS) \
			--report conformance/reports/autoip-without-$$without.json --tb=no || [ $$? = 1 ] || exit 1; \
	done
	$(PY) -m conformance.page

build: $(VENV)/.dev ## source distribution and wheel, into dist/
	$(AS_OWNER) $(PY) -m build --no-isolation --outdir dist .

# In a copy: a build writes into its tree. With Debian's own Python, also where another one comes first in the path.
deb: ## Debian packages, into dist/: for Debian 12 and newer, if built on Debian 12
	$(DEPS)
	$(AS_OWNER) rm -rf build/deb
	$(AS_OWNER) mkdir -p build/deb/autoip dist
	$(AS_OWNER) tar --exclude='./.[a-z]*' --exclude=./build --exclude=./dist --exclude='*.egg-info' --exclude='*.so' \
		--exclude=__pycache__ --exclude=./tests/c/bin -cf - . | $(AS_OWNER) tar -C build/deb/autoip -xf -
	cd build/deb/autoip && $(AS_OWNER) env -u MAKEFLAGS PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage -b -us -uc
	$(AS_OWNER) mv build/deb/*.deb dist

release: $(VENV)/.dev ## all of these with checksums and a bill of materials, of a committed version of CHANGELOG.md
	$(AS_OWNER) $(PY) -m tools.release check
	$(AS_OWNER) rm -rf dist
	$(MAKE) --no-print-directory build
	$(MAKE) --no-print-directory deb
	$(AS_OWNER) $(PY) -m tools.release finish

# The healthcheck is a part of Docker's format alone.
IMAGE ?= autoip
image: ## a container image, by buildah (IMAGE=autoip; BASE=debian:trixie-slim: another base)
	@command -v buildah >/dev/null || { echo >&2 "autoip: there is no buildah here; or: docker build -t $(IMAGE) ."; exit 1; }
	buildah build --format docker $(if $(BASE),--build-arg BASE=$(BASE)) -t $(IMAGE) .

# The program and the packages that it needs in a folder of its own, for one Python. No other program finds
# them, and autoip finds them before any others of the same name. Not an environment, so it does
# not depend on this tree, and nothing that a distribution installed is touched.
# A packager installs the wheel with the distribution's own tools, and runs install-data.
install: install-program install-data ## into PREFIX (/usr/local), below DESTDIR; uninstall: take it away
	@echo "autoip: installed. The service: systemd-sysusers; systemctl daemon-reload;"
	@echo "        systemctl enable --now autoip@eth0; or autoip.service for all, see autoip(8)"

FOLDERS := $(UNITDIR) $(SYSUSERSDIR) $(MANDIR)/man5 $(MANDIR)/man8 $(BASHDIR) $(ZSHDIR) $(FISHDIR) $(EXAMPLEDIR)
# The list of the folders that were not there before, for uninstall.
FOLDERS_MADE := $(PROGRAMDIR)/.folders
ifneq ($(filter install,$(MAKECMDGOALS)),)
install-program install-data: install-folders
endif

install-folders:
	@bash tools/folders.sh make "$(DESTDIR)" "$(FOLDERS_MADE)" \
		$(foreach dir,$(PROGRAMDIR) $(BINDIR) $(FOLDERS),"$(dir)")

install-program: setup
	rm -rf build/wheel
	$(AS_OWNER) $(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	install -d "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(PROGRAMDIR)"
	find "$(DESTDIR)$(PROGRAMDIR)" -mindepth 1 -maxdepth 1 ! -name .folders -exec rm -rf {} +
	$(PIP) install --target "$(DESTDIR)$(PROGRAMDIR)" "$$(echo build/wheel/autoip-*.whl)[networkmanager]"
	rm -rf "$(DESTDIR)$(PROGRAMDIR)/bin"
	sed -e "1s|.*|#!/usr/bin/env -S --block-signal=SIGINT,SIGTERM $$($(PY) -c 'import sys; print(sys._base_executable)') -I|" \
		-e 's|@PROGRAMDIR@|$(PROGRAMDIR)|' share/autoip.in >"$(DESTDIR)$(BINDIR)/autoip"
	chmod 755 "$(DESTDIR)$(BINDIR)/autoip"

install-data:
	install -d $(foreach dir,$(FOLDERS),"$(DESTDIR)$(dir)")
	for unit in autoip.service autoip@.service autoip-wait@.service; do \
		sed -E 's@^(ExecStart|ExecReload)=autoip @\1=$(BINDIR)/autoip @' "share/$$unit" \
			>"$(DESTDIR)$(UNITDIR)/$$unit" && chmod 644 "$(DESTDIR)$(UNITDIR)/$$unit" || exit 1; \
	done
	install -m 644 share/autoip.sysusers "$(DESTDIR)$(SYSUSERSDIR)/autoip.conf"
	install -m 644 share/autoip.conf.5 "$(DESTDIR)$(MANDIR)/man5"
	install -m 644 share/autoip.8 share/autoip-hooks.8 "$(DESTDIR)$(MANDIR)/man8"
	install -m 644 share/completions/autoip.bash "$(DESTDIR)$(BASHDIR)/autoip"
	install -m 644 share/completions/_autoip "$(DESTDIR)$(ZSHDIR)/_autoip"
	install -m 644 share/completions/autoip.fish "$(DESTDIR)$(FISHDIR)/autoip.fish"
	install -m 644 share/90-autoip.rules "$(DESTDIR)$(EXAMPLEDIR)/90-autoip.rules"
	for script in share/autoip.init share/autoip.openrc; do \
		sed 's|@BINDIR@|$(BINDIR)|' "$$script" >"$(DESTDIR)$(EXAMPLEDIR)/$${script#share/}" \
			&& chmod 755 "$(DESTDIR)$(EXAMPLEDIR)/$${script#share/}" || exit 1; \
	done

# Beside autoip, in the folder that comes before the real one's in PATH. See docs/avahi-autoipd.md.
install-compat:
	ln -sfn autoip "$(DESTDIR)$(BINDIR)/avahi-autoipd"
	install -D -m 644 share/avahi-autoipd.8 "$(DESTDIR)$(MANDIR)/man8/avahi-autoipd.8"

# A service that is enabled or running would break: then nothing is removed. Hooks that would call the removed
# program go first; below DESTDIR the program does not run. The folders that `install` made go
# if they are empty.
uninstall: ## with the same PREFIX and DESTDIR
	@if [ -z "$(DESTDIR)" ] && [ -e "$(UNITDIR)/autoip@.service" ]; then \
		services=$$(bash tools/services.sh | tr '\n' ' '); \
		if [ -n "$$services" ]; then \
			echo >&2 "autoip: enabled or running: $${services% }; first: systemctl disable --now $${services% }"; \
			exit 1; \
		fi; \
	fi
	@if [ -z "$(DESTDIR)" ] && grep -qsxF "AUTOIP=$(BINDIR)/autoip" /etc/autoip/hook; then \
		"$(BINDIR)/autoip" hooks remove; \
	fi
	@if [ "$$(readlink "$(DESTDIR)$(BINDIR)/avahi-autoipd")" = autoip ]; then \
		rm -f "$(DESTDIR)$(BINDIR)/avahi-autoipd" "$(DESTDIR)$(MANDIR)/man8/avahi-autoipd.8"; \
	fi
	rm -f $(foreach file,$(BINDIR)/autoip $(UNITDIR)/autoip.service $(UNITDIR)/autoip@.service $(UNITDIR)/autoip-wait@.service \
		$(SYSUSERSDIR)/autoip.conf \
		$(MANDIR)/man5/autoip.conf.5 $(MANDIR)/man8/autoip.8 $(MANDIR)/man8/autoip-hooks.8 $(BASHDIR)/autoip $(ZSHDIR)/_autoip $(FISHDIR)/autoip.fish \
		$(EXAMPLEDIR)/90-autoip.rules $(EXAMPLEDIR)/autoip.init $(EXAMPLEDIR)/autoip.openrc,"$(DESTDIR)$(file)")
	@folders=$$(cat "$(DESTDIR)$(FOLDERS_MADE)" 2>/dev/null); \
	echo 'rm -rf "$(DESTDIR)$(PROGRAMDIR)"'; rm -rf "$(DESTDIR)$(PROGRAMDIR)"; \
	bash tools/folders.sh remove "$(DESTDIR)" "$$folders"

clean: ## remove all that make has made
	rm -rf $(VENV) build dist autoip.egg-info autoip/kernel/_*.so autoip/kernel/_*.c
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -prune -exec rm -rf {} +
	@if [ -e tests/c/Makefile ]; then $(MAKE) --no-print-directory -C tests/c clean; fi

$(VENV)/.made: $(REMAKE)
	$(DEPS)
	@echo "autoip: making $(VENV) with $$($(PYTHON) -V)"
	@$(AS_OWNER) $(PYTHON) -m venv --clear $(VENV)
	@$(AS_OWNER) $(PIP) install --upgrade setuptools cffi
	@echo "$(PYTHON)" | $(AS_OWNER) tee $@ >/dev/null

# Built in place, so that the sources themselves run. The old module goes first: the build would
# not notice a changed header.
$(VENV)/.ready: $(VENV)/.made pyproject.toml setup.py $(EXTENSION)
	@echo "autoip: building the extension"
	@rm -f autoip/kernel/_*.so
	@$(AS_OWNER) $(PIP) install --no-build-isolation -e '.[networkmanager]'
	@$(AS_OWNER) touch $@

$(VENV)/.dev: pyproject.toml setup.py | $(VENV)/.ready
	@echo "autoip: installing what the tests and checks need"
	@$(AS_OWNER) $(PIP) install --no-build-isolation -e '.[bench,dev,release,test]'
	@$(AS_OWNER) touch $@

.PHONY: help setup run test test-units test-conformance test-defence check $(CHECKS) mutate bench attack $(ATTACKS) conformance build deb release image install install-folders \
	install-program install-data install-compat uninstall clean remake

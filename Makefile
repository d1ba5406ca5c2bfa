# sudo make demo       installs what is missing and shows loaded-mp on real traffic; KEEP=1 leaves it standing
# sudo make test       installs what is missing and runs every check and test but the long ones
# sudo make test-long  runs those: many hand-overs, locks that are held, the shipped unit under a systemd
# sudo make test-kernel DEB='....deb ...'  tries the fast path's programs under another kernel, emulated
# sudo make bench      measures it beside routing, DNAT, HAProxy, nginx and, where the kernel has it, LVS,
#                      into docs/performance; QUICK=1 just looks
# sudo make bench-lvs  measures it beside LVS in a guest, where the kernel has none
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := python3-venv python3-dev gcc libc6-dev libnetfilter-queue-dev iptables iproute2 procps \
	nginx-light curl wget iputils-ping bind9-dnsutils tcpdump traceroute iperf3 haproxy wrk libnginx-mod-stream \
	openssl

.PHONY: demo test test-long test-kernel bench bench-lvs install packages check clean machine-code unit-interpreted unit-uncompiled

demo: machine-code
	$(BIN)/loaded-mp demo $(if $(KEEP),--keep)

# Real servers as targets of checks. An SMTP server is tried where one is installed: two cannot be.
test: PACKAGES += bind9 redis-server
test: install
	$(MAKE) --no-print-directory --output-sync -j2 machine-code check unit-interpreted unit-uncompiled
	$(BIN)/pytest tests -q -m 'not long and not alone and not uncompiled' -n 3 --dist loadfile
	$(BIN)/pytest tests -q -m 'not long and alone'

test-long: install
	$(BIN)/pytest tests -q -m long

test-kernel: PACKAGES += qemu-system-x86 busybox-static kmod xz-utils zstd
test-kernel: install
	$(BIN)/python tests/kernels/guest.py $(DEB)

unit-interpreted:
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest tests/unit -q -m 'not uncompiled'

machine-code: install
	$(BIN)/loaded-mp warm-up

unit-uncompiled:
	$(BIN)/pytest tests/unit -q -m uncompiled

bench: PACKAGES += ipvsadm
bench: install
	$(BIN)/python tests/bench/main.py $(if $(QUICK),--quick,--out docs/performance)
	$(if $(QUICK),,$(BIN)/python tests/bench/paper.py --out docs/performance)
	$(if $(QUICK),,$(BIN)/python tests/bench/scale.py --out docs/performance)
	$(if $(QUICK),,$(BIN)/python tests/bench/checks.py --out docs/performance)
	$(if $(QUICK),,$(BIN)/python tests/bench/schedulers.py docs/performance)
	$(if $(QUICK),,$(BIN)/python tests/bench/page.py docs/performance)

bench-lvs: PACKAGES += ipvsadm user-mode-linux kmod
bench-lvs: install
	$(BIN)/python tests/bench/guest.py docs/performance
	$(BIN)/python tests/bench/ipvs.py docs/performance
	$(BIN)/python tests/bench/page.py docs/performance

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml | packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

# dpkg answers at once where everything is there, so a second run needs no package archive.
packages:
	@dpkg --status $(PACKAGES) >/dev/null 2>&1 || { \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES); }

clean:
	rm -rf $(VENV) build *.egg-info

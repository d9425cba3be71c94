# Two commands: git clone, make run.  GATEWAY_BUILD=release|debug|sanitizer picks the build of the extensions.

PYTHON        ?= python3
GATEWAY_BUILD ?= release
export GATEWAY_BUILD

VENV   := .venv
BIN    := $(VENV)/bin
# The kernels, and the Python modules that are compiled too: those with a .pxd beside them.
NATIVE := $(wildcard _native/*.pyx _native/*.pxi _native/*.pxd _native/*.h gateway/*/*.pxd gateway/*/*/*.pxd tools/*/*.pyx tools/*/*.pxd) \
          $(wildcard $(patsubst %.pxd,%.py,$(wildcard gateway/*/*.pxd gateway/*/*/*.pxd tools/*/*.pxd)))
BUILT  := $(VENV)/.built-$(GATEWAY_BUILD)

.PHONY: run test bench bench-peers overload soak lint build debug sanitizer crash fuzz clean

run: build                          ## the demo: local mail for example.test on unprivileged loopback ports
	@test -f run/edge.toml || $(BIN)/gateway init --demo run/
	@echo 'send:  curl smtp://127.0.0.1:2525 --mail-from me@example.org --mail-rcpt alice@example.test -T message.eml'
	@echo 'read:  curl "imap://127.0.0.1:2143/INBOX;MAILINDEX=1" --user alice:PASSWORD      (pop3://127.0.0.1:2110/1)'
	@echo 'accounts (run/accounts.txt):'
	@sed 's/^/       /' run/accounts.txt
	@exec $(BIN)/gateway serve --config run/edge.toml

# Two at a time, by the file: most tests wait for somebody.  In the order of the files, for the short ones come last.
test: build lint                    ## everything; what this machine lacks is skipped with the reason (CI=true: fails)
	@tools/install_peers
	@$(BIN)/python -c 'import bonsai' 2>/dev/null || ! test -e /usr/include/ldap.h || $(BIN)/pip install -qq -e '.[ldap]' --no-build-isolation
	@$(BIN)/pytest -rs -n 2 --dist loadfile --no-loadscope-reorder

bench: build                        ## the kernels, as ratios to what else does the same
	@$(BIN)/pip install -qq -e '.[bench]' --no-build-isolation
	@$(BIN)/pytest benches --benchmark-enable --benchmark-columns=min,median,ops -o python_files='bench_*.py'

bench-peers: build                  ## side by side with Postfix, smtp-sink and whoever else is installed
	@tools/install_peers --bench
	@$(BIN)/python -m benches.peers

overload: build                     ## twice the load that can be borne, for SECONDS (60); OUT=DIR keeps everything
	@$(BIN)/python -m benches.campaigns overload --seconds $(or $(SECONDS),60) $(if $(OUT),--out $(OUT)) $(if $(REPORT),--report $(REPORT))

soak: build                         ## mixed mail for DURATION seconds (3600), with kills, reloads and restarts from SEED
	@$(BIN)/python -m benches.campaigns soak --seconds $(or $(DURATION),3600) --seed $(or $(SEED),1) $(if $(OUT),--out $(OUT)) $(if $(REPORT),--report $(REPORT))

lint: build
	@$(BIN)/ruff check .
	@$(BIN)/mypy

build: $(BUILT)

debug:                              ## -O0 -g, bounds checks, leak counters
	@$(MAKE) --no-print-directory build GATEWAY_BUILD=debug

sanitizer:                          ## ASan + UBSan, and the native tests run under them
	@$(MAKE) --no-print-directory build GATEWAY_BUILD=sanitizer
	@LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc $(BIN)/pytest -p no:cacheprovider tests/native

crash: build                        ## kill, cut off and starve it for long: ROUNDS kills from SEED, tables to REPORT
	@PYTHONPATH=.:tools:tests:tests/interop:tests/unit $(BIN)/python tests/crash/campaign.py --rounds $(or $(ROUNDS),200) \
	  --seed $(or $(SEED),1) --states $(or $(STATES),0) $(if $(REPORT),--report $(REPORT))

fuzz: build                         ## coverage-guided, with sanitizers: SECONDS in all (an hour), one TARGET or every
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),3600) $(TARGET)

clean:                              ## builds and the demo's state go; the virtual environment stays (rm -r .venv)
	@rm -rf build dist run *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@rm -f _native/*.c _native/*.html gateway/*/*.so gateway/*/*/*.so tools/*/*.so tools/*/*.c tools/*/wire.html $(VENV)/.built-*

# The extensions are rebuilt when their sources changed, all of them when the kind of build did.
$(BUILT): $(VENV)/.installed $(NATIVE)
	@test -e $@ || ! ls $(VENV)/.built-* >/dev/null 2>&1 || rm -rf _native/*.c build/compiled gateway/*/*.so gateway/*/*/*.so tools/*/*.so tools/*/*.c $(VENV)/.built-*
	@echo "building the extensions ($(GATEWAY_BUILD))"
	@$(BIN)/python setup.py -q build_ext --inplace --parallel 2
	@touch $@

# The build requirements of pyproject.toml go into the environment itself, so that a rebuild needs no network.
$(VENV)/.installed: pyproject.toml setup.py tools/check_needs
	@tools/check_needs $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  > $(VENV)/build-requires.txt
	@$(BIN)/pip install -qq --disable-pip-version-check -r $(VENV)/build-requires.txt
	@GATEWAY_BUILD=none $(BIN)/pip install -qq --disable-pip-version-check --no-build-isolation -e '.[test]'
	@touch $@

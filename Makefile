# Everything happens in .venv, which is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A sourced ROS 2 puts its own packages on PYTHONPATH; this environment brings its own.
RUN := env -u PYTHONPATH -u AMENT_PREFIX_PATH $(BIN)

# Tests of nodes wait more than they compute, and run two at a time, in a ROS domain each, when all others are done; those
# that play recordings count what comes too late, and run alone. Where ROS 2 is missing they are all skipped, for which
# pytest ends with status 5. What they all run is compiled before.
ALONE := test/ros/test_recordings_live.py test/test_demo.py
LIVE := test/ros test/launch

.PHONY: demo test check bench clean

demo: $(READY)
	@$(RUN)/lidar-semseg demo $(if $(BAG),--bag $(BAG))

test: $(READY)
ifdef ARGS
	@$(RUN)/python -m pytest $(ARGS)
else
	@$(RUN)/lidar-semseg bench --build-only --device cpu
	@OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder \
		$(LIVE:%=--ignore=%) $(ALONE:%=--ignore=%)
	@$(RUN)/python -m pytest -n auto --maxprocesses 2 --dist loadfile $(ALONE:%=--ignore=%) $(LIVE) || test $$? = 5
	@$(RUN)/python -m pytest $(ALONE) || test $$? = 5
endif

check: $(READY)
	@$(RUN)/ruff check . && $(RUN)/ruff format --check . && $(RUN)/mypy -p lidar_semseg_ros.core -p lidar_semseg_ros.formats -p lidar_semseg_ros.network

bench: $(READY)
	@$(RUN)/lidar-semseg bench

clean:
	rm -rf $(VENV) demo build install log *.egg-info

$(READY): setup.py constraints.txt
	@echo "setting up $(VENV): ROS 2, PyTorch and the rest (once, about a gigabyte) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@env -u PYTHONPATH $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[ros,torch,onnx,export,sim,teacher,test]'
	@touch $@

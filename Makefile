# Everything happens in .venv, which is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A sourced ROS 2 puts its own packages on PYTHONPATH; this environment brings its own.
RUN := env -u PYTHONPATH -u AMENT_PREFIX_PATH $(BIN)

.PHONY: demo test check bench clean

demo: $(READY)
	@$(RUN)/lidar-semseg demo $(if $(BAG),--bag $(BAG))

test: $(READY)
	@$(RUN)/python -m pytest $(ARGS)

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

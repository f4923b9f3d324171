"""One process of a run of the toy task: `python worker.py --options=JSON` and the hosts' flags.

Options: workdir, config (changes of the toy config), mesh; "die": the step in which it kills
itself; "fail": the step whose batch cannot be read; "weights": what is added to the frozen ones;
"trace": seconds that its tracing takes longer;
"dawdle": whether it waits for a signal before it trains. Each step that begins is told on stdout.
TensorBoard, which other tests look at, is left out: its import takes longer than all the rest.
"""

import functools
import json
import os
import signal
import threading
import time

from absl import app, flags
from toy import ToyBatches, ToyTask, toy_config

from ldm_scaling.hosts import define_flags
from ldm_scaling.launching import running

OPTIONS = flags.DEFINE_string("options", None, "JSON", required=True)
define_flags()


class NoTensorBoard:
    def write_scalars(self, step, scalars):
        pass

    def close(self):
        pass


class SlowlyTraced(ToyTask):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def loss(self, *args):
        time.sleep(self.seconds)
        return super().loss(*args)


def main(argv):
    from ldm_scaling.sharding import local_rows, make_mesh
    from ldm_scaling.train import loop, report, step

    options = json.loads(OPTIONS.value)

    def on_step(step):
        print(f"step {step}", flush=True)
        if step == options.get("fail"):
            raise OSError("the disk is unplugged")
        if step == options.get("die"):  # beside the main thread, so that it dies within the step
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGKILL)).start()

    with running("toy"):
        report.Report._open = lambda self, params: setattr(self, "_writer", NoTensorBoard())
        step.build = functools.partial(step.build, min_shard_size=1)  # everything is sharded
        config = toy_config(**options["config"])
        mesh = make_mesh(**options["mesh"])
        rows = local_rows(mesh, config.batch_size)
        loop._quiet_orbax()
        print("joined", flush=True)
        if options.get("dawdle"):
            signal.pause()
        task = SlowlyTraced(options.get("trace", 0))
        task.frozen = {"target": task.frozen["target"] + options.get("weights", 0)}
        loop.run(
            config,
            options["workdir"],
            mesh,
            task,
            ToyBatches(on_step=on_step, rows=rows),
            ToyBatches(rows=rows),
        )


if __name__ == "__main__":
    app.run(main)

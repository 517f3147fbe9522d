"""What the tests of training run in other processes, to kill one or to train with two."""

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch

from fusionlib.profiles import load_profile
from fusionlib.training import adapter
from fusionlib.training.loop import Batch, step_generator
from fusionlib.training.runs import RunOptions


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(profile: Path, out: Path, moment: str | float) -> None:
    """Train, and be killed at a moment.

    Args:
        profile: YAML file of the profile.
        out: Folder of the adapter.
        moment: Seconds after the first batch was drawn; ``"writing"`` for half way through the
            second checkpoint; or ``"never"``.
    """
    torch.set_num_threads(1)
    if isinstance(moment, float):
        prepare = adapter.prepare

        def prepared(*args: Any, **kwargs: Any) -> Any:
            task = prepare(*args, **kwargs)
            source = task.source

            def draw(batch: Batch) -> Any:
                task.source = source
                threading.Thread(target=lambda: (time.sleep(moment), die()), daemon=True).start()
                return source(batch)

            task.source = draw
            return task

        adapter.prepare = prepared
    elif moment == "writing":
        save, written = torch.save, []

        def half(state: Any, file: Any) -> None:
            written.append(file)
            if len(written) < 2:
                return save(state, file)
            file.write(os.urandom(1000))
            file.flush()
            die()

        torch.save = half
    adapter.train(load_profile(profile), RunOptions(out))


def two_processes(rank: int, port: int, profile: Path, out: Path) -> None:
    """One of two: the gradients of its half of the first four samples, then a short run."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_TORCH_DISTRIBUTED_BACKEND": "gloo",
    }  # fmt: skip
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2 and torch.distributed.get_backend() == "gloo"
    task = adapter.prepare(load_profile(profile))
    network = accelerator.prepare(task.network)
    batch = Batch(0, range(2 * rank, 2 * rank + 2), 4, step_generator(0, rank))
    accelerator.backward(task.loss(network, batch)["loss"])
    if rank == 0:
        torch.save(gradients(task), out / "gradients.pt")
    run = adapter.train(load_profile(profile), RunOptions(out / "adapter"))
    assert run.samples == 4 * run.steps
    torch.distributed.destroy_process_group()


def gradients(task: adapter.Task) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in task.network.named_parameters() if p.grad is not None}


def random_moments(count: int, longest: float) -> list[float]:
    return [random.Random(number).uniform(0, longest) for number in range(count)]

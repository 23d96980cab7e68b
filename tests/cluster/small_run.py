"""train.py with a small config: it writes down what it does, and fails where it is told to.

    python -m tests.cluster.small_run WORKDIR [section.field=value ...]

FAULT="kind process phase step [seconds]" in the environment makes that process fail as it comes there, or so long
after: "term" (SIGTERM), "int" (SIGINT twice), "kill" (SIGKILL), "hang", "fail" (an error), or "nan" (its images' sizes
are not a number; phase "data"). Phase "open" is before the data is opened. MODEL=detector trains a real detector in
place of a model that compiles quickly.
"""

import json
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from maskx_jax import errors

CONFIG = pathlib.Path(__file__).with_name("small_config.py")


def main() -> None:
    """Train, and exit as train.py does."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from maskx_jax.cli import train
    from maskx_jax.data import pipeline
    from maskx_jax.distributed.watchdog import Watchdog
    from maskx_jax.models.build import FAMILIES, Part
    from maskx_jax.training import loop
    from tests.cluster.stand_in import StandIn

    workdir, *changes = sys.argv[1:]
    sys.argv = ["train.py", f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.{change}" for change in changes)]
    fault, delay = os.environ.get("FAULT", ""), 0.0
    if fault.count(" ") == 4:
        fault, _, seconds = fault.rpartition(" ")
        delay = float(seconds)

    def fail_at(phase: str, step: int) -> None:
        place = f"{jax.process_index()} {phase} {step}"
        for kind, sent in (("term", signal.SIGTERM), ("kill", signal.SIGKILL)):
            if fault == f"{kind} {place}" and delay:
                threading.Timer(delay, os.kill, (os.getpid(), sent)).start()
            elif fault == f"{kind} {place}":
                os.kill(os.getpid(), sent)
        if fault == f"int {place}":
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        if fault == f"fail {place}":
            raise ValueError("this process alone has no luck")
        while fault == f"hang {place}":
            time.sleep(1)

    original_batches, original_at, original_open = pipeline.train_batches, Watchdog.at, loop.open_source

    def recorded(*arguments: Any, **options: Any) -> Iterator[Any]:
        """Yield the batches, and append the ids of each to a file."""
        path = pathlib.Path(workdir) / f"ids-{jax.process_index()}-of-{jax.process_count()}.jsonl"
        with path.open("a") as file:
            for step, batch in enumerate(original_batches(*arguments, **options), options["start_step"] + 1):
                file.write(json.dumps({"step": step, "ids": batch.image_ids.tolist()}) + "\n")
                file.flush()
                poisoned = fault == f"nan {jax.process_index()} data {step}"
                yield batch.replace(image_sizes=batch.image_sizes * float("nan")) if poisoned else batch

    def failing_at(self: Watchdog, phase: str, step: int) -> None:
        original_at(self, phase, step)
        fail_at(phase, step)

    def failing_open(*arguments: Any, **options: Any) -> Any:
        fail_at("open", 0)
        return original_open(*arguments, **options)

    pipeline.train_batches, loop.open_source = recorded, failing_open
    Watchdog.at = failing_at  # type: ignore[method-assign]
    if os.environ.get("MODEL") != "detector":
        FAMILIES["rcnn"] = Part(lambda num_classes, **_: StandIn(num_classes), FAMILIES["rcnn"].limits)
    errors.run(train.main)


if __name__ == "__main__":
    main()

"""A small training run as a program, which writes down what it does and fails where it is told to.

    python -m tests.cluster.small_run WORKDIR [section.field=value ...]

FAULT="kind process phase step [seconds]" in the environment makes that process fail as it comes there, or so long
after: "term" (SIGTERM), "kill" (SIGKILL), "hang", or "nan" (its images' sizes are not a number; phase "data").
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

from absl import logging


def main() -> int:
    """Train; return the exit code of train.py."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    import train
    from maskx_jax.data import pipeline
    from maskx_jax.training import distributed
    from maskx_jax.training.interruption import EXIT_INTERRUPTED, InterruptedRun
    from maskx_jax.training.watchdog import Watchdog

    logging.set_verbosity(logging.ERROR)
    workdir, *changes = sys.argv[1:]
    config = small_config(changes)
    distributed.join(**config.distributed.to_dict())

    original = pipeline.train_batches

    def recorded(*arguments: Any, **options: Any) -> Iterator[Any]:
        """Yield the batches, and append the ids of each to a file."""
        path = pathlib.Path(workdir) / f"ids-{jax.process_index()}-of-{jax.process_count()}.jsonl"
        with path.open("a") as file:
            for step, batch in enumerate(original(*arguments, **options), options["start_step"] + 1):
                file.write(json.dumps({"step": step, "ids": batch.image_ids.tolist()}) + "\n")
                file.flush()
                poisoned = fault == f"nan {jax.process_index()} data {step}"
                yield batch.replace(image_sizes=batch.image_sizes * float("nan")) if poisoned else batch

    original_at = Watchdog.at

    def failing_at(self: Watchdog, phase: str, step: int) -> None:
        original_at(self, phase, step)
        place = f"{jax.process_index()} {phase} {step}"
        for kind, sent in (("term", signal.SIGTERM), ("kill", signal.SIGKILL)):
            if fault == f"{kind} {place}" and delay:
                threading.Timer(delay, os.kill, (os.getpid(), sent)).start()
            elif fault == f"{kind} {place}":
                os.kill(os.getpid(), sent)
        while fault == f"hang {place}":
            time.sleep(1)

    fault, delay = os.environ.get("FAULT", ""), 0.0
    if fault.count(" ") == 4:
        fault, _, seconds = fault.rpartition(" ")
        delay = float(seconds)
    pipeline.train_batches = recorded
    Watchdog.at = failing_at  # type: ignore[method-assign]
    try:
        train.train(config, workdir)
    except InterruptedRun as interrupted:
        print(interrupted, file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def small_config(changes: list[str]) -> Any:
    """Return the config: 64-pixel images of six categories, eight steps with two evaluations."""
    from configs import maskx_rcnn

    config = maskx_rcnn.get_config("backbone=tiny,data=shapes,mlp=light")
    config.data.mask_split = "random(1,4)"
    config.data.shapes.update(num_train=32, num_eval=6, image_size=64, num_hues=3, num_textures=2, max_objects=2)
    config.data.transform.update(canvas=(64, 64), short_sides=(64,), max_long_side=64, num_slots=4)
    config.model.backbone.width = 8
    config.model.fpn.channels = config.model.rpn.channels = 16
    config.model.rpn.update(num_samples=32, pre_nms_top_k=(50, 50), post_nms_top_k=(20, 20))
    config.model.box_head.update(hidden=32, num_samples=16, max_detections=5)
    config.model.mask_head.update(channels=16, num_convs=1, num_samples=4)
    config.optimizer.schedule = "step"
    config.train.update(batch_size=4, num_steps=8, log_every=1, checkpoint_every=2, eval_every=4, keep_checkpoints=3)
    config.evaluation.update(batch_size=4, num_pictures=0)
    config.distributed.update(start_timeout=60, peer_timeout=20)
    config.watchdog.sign_every = 0.5
    for change in changes:
        name, _, value = change.partition("=")
        *parents, field = name.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        section[field] = type(section[field])(json.loads(value))
    return config


if __name__ == "__main__":
    sys.exit(main())

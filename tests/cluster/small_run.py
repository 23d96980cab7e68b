"""train.py with a small config: it writes down what it does, and fails where it is asked to.

    python -m tests.cluster.small_run WORKDIR [section.field=value ...]

FAULT="kind process phase step [seconds]" in the environment makes that process fail as it enters a phase, or so long
after: "term" (SIGTERM), "int" (SIGINT twice), "kill" (SIGKILL), "hang", "fail" (an error), or "nan" (its images' sizes
are not a number; phase "data"). Phase "open" is before the data is opened. SYSTEM=maskx_rcnn (keypoint_rcnn, fcos,
embedmask) trains this detector of `small_config` in place of a model that compiles quickly.
"""

import dataclasses
import json
import os
import pathlib
import signal
import sys
import threading
import time

from maskx_jax import errors
from maskx_jax.structures import Batch

CONFIG = pathlib.Path(__file__).with_name("small_config.py")


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong, and where; nothing, of kind ""."""

    kind: str
    process: int = 0
    phase: str = ""
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Fault":
        kind, process, phase, step, seconds = [*text.split(), *("", 0, "", 0, 0)[len(text.split()) :]]
        return cls(str(kind), int(process), str(phase), int(step), float(seconds))

    def is_at(self, phase: str, step: int) -> bool:
        import jax

        return bool(self.kind) and (self.process, self.phase, self.step) == (jax.process_index(), phase, step)

    def strike(self, phase: str, step: int) -> None:
        """Let it happen, if it is here."""
        import jax

        if not self.is_at(phase, step):
            return
        if self.kind in ("term", "kill"):
            sent = {"term": signal.SIGTERM, "kill": signal.SIGKILL}[self.kind]
            if self.seconds:
                threading.Timer(self.seconds, os.kill, (os.getpid(), sent)).start()
            else:
                os.kill(os.getpid(), sent)
                # JAX's preemption service looks once a second.
                time.sleep(2.5 if jax.process_count() > 1 else 0)
        elif self.kind == "int":
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        elif self.kind == "fail":
            raise ValueError("only this process has no luck")
        while self.kind == "hang":
            time.sleep(1)

    def poison(self, step: int, batch: Batch) -> Batch:
        """Return the batch, with sizes that are not a number if the fault is here."""
        is_poisoned = self.kind == "nan" and self.is_at("data", step)
        return batch.replace(image_sizes=batch.image_sizes * float("nan")) if is_poisoned else batch


def main() -> int:
    """Train, and exit as train.py does."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from maskx_jax.cli import train
    from maskx_jax.training.loop import Parts
    from tests.cluster.stand_in import StandIn

    workdir, *changes = sys.argv[1:]
    fault = Fault.parse(os.environ.get("FAULT", ""))

    def record(step: int, batch: Batch) -> Batch:
        """Append the ids of the batch to a file."""
        path = pathlib.Path(workdir) / f"ids-{jax.process_index()}-of-{jax.process_count()}.jsonl"
        with path.open("a") as file:
            file.write(json.dumps({"step": step, "ids": batch.image_ids.tolist()}) + "\n")
        return fault.poison(step, batch)

    parts = Parts(on_phase=fault.strike, on_batch=record)
    system = os.environ.get("SYSTEM", "")
    if not system:
        parts = dataclasses.replace(parts, build=lambda fields, num_classes: StandIn(num_classes))
    flags = [f"--config={CONFIG}:{system}", f"--workdir={workdir}", *(f"--config.{change}" for change in changes)]
    return train.main(flags, parts)


if __name__ == "__main__":
    errors.run(main)

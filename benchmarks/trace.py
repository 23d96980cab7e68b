"""What takes the time of a compiled program: a profiler's trace, whose kernels are looked up in the program's text."""

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

# What a kernel is counted as: the first of these among its instructions, by opcode and by a custom call's target.
KINDS = {
    "convolution": r"convolution|.*(cudnn\$conv|__cudnn|Convolution).*",
    "product": r"dot|.*(cublas|gemm|Gemm|MatMul|__triton_nested_gemm).*",
    "scatter": r"scatter|select-and-scatter",
    "gather": r"gather",
    "sort": r"sort|topk|.*(TopK|RadixSort|__cub).*",
    "loop": r"while|conditional",
    "reduction": r"reduce.*",
}
# A kernel of nothing else.
COPY = (
    r"copy.*|dynamic-update-slice|(dynamic-)?slice|concatenate|pad|transpose|broadcast|bitcast|parameter|constant|iota"
)
OTHER, OTHER_PART = "elementwise and other", "rest"
# Kernels of libraries, by their own names, where the trace does not say which instruction they belong to.
_KERNELS = {
    "convolution": r"(?i)conv|fprop|dgrad|wgrad|implicit",
    "product": r"(?i)gemm|nvjet|cutlass|xmma",
    "sort": r"(?i)sort|topk",
    "scatter": r"(?i)scatter",
    "gather": r"(?i)gather",
    "copy": r"(?i)memcpy|memset|copy|transpose",
    "reduction": r"(?i)reduce",
}
# Parts of the step, by the path of an instruction in the source.
PARTS = {
    "RoIAlign": r"\b_?pool\b",
    "proposals": r"\brpn\.proposals\b",
    "rpn": r"\brpn\b",
    "backbone": r"\bbackbone\b",
    "fpn": r"\bfpn\b",
    "mask head": r"\b(mask_head|mask_weights|_?mask_logits|MaskHead)\b",
    "box head": r"\b(box_head|_?box_predictions)\b",
    "optimizer": r"^jit\(step\)/[^/]*$",
}
_SHOWN = 200

Event = tuple[str, str, float]


def profile(steps: Callable[[], Any], text: str, count: int) -> dict[str, Any]:
    """Return shares of the device's time by kind of instruction and by part of the model, and the longest kernels.

    Where the trace cannot be read, the shares are of the number of instructions, and `source` says so and why.

    Args:
      steps: runs the program some times, and waits for its end.
      text: of the compiled program.
      count: of the program's runs in `steps`.
    """
    instructions = read_instructions(text)
    try:
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                steps()
            events = list(read_events(pathlib.Path(folder)))
        if not events:
            raise ValueError("the trace has no events of a device")
        return {"source": "trace", **summarize(events, instructions, count)}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        counts = collections.Counter(kind for kind, _ in instructions.values())
        shares = _shares({kind: float(number) for kind, number in counts.items()})
        return {"source": f"number of instructions; the trace cannot be read: {reason}", "shares": shares}


def read_instructions(text: str) -> dict[str, tuple[str, str]]:
    """Return kind and part of the model for each instruction of a compiled program, by its name."""
    own: dict[str, tuple[str, str, str]] = {}
    contents: dict[str, list[str]] = {}
    inside: list[str] = []
    for line in text.splitlines():
        if header := re.match(r"\s*(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            inside = contents.setdefault(header[1], [])
        elif found := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][a-z0-9\-]*)\(", line):
            target = re.search(r'custom_call_target="([^"]*)"', line)
            called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", line) if found[2] in ("fusion", "call") else None
            path = re.search(r'op_name="([^"]*)"', line)
            opcode = target[1] if target else found[2]
            own[found[1]] = (opcode, called[1] if called else "", _part(path[1]) if path else "")
            inside.append(found[1])

    def leaves(name: str) -> Iterator[tuple[str, str]]:
        """Yield opcode and part of what an instruction consists of."""
        opcode, called, part = own[name]
        if not called:
            yield opcode, part
        for inner in contents.get(called, []):
            yield from leaves(inner)

    def kind_and_part(name: str) -> tuple[str, str]:
        opcodes, parts = zip(*leaves(name), strict=True)
        part = next(filter(None, (own[name][2], *parts)), OTHER_PART)
        return "copy" if all(re.fullmatch(COPY, opcode) for opcode in opcodes) else _first(KINDS, opcodes), part

    return {name: kind_and_part(name) for name, (_, called, _) in own.items() if not called or contents.get(called)}


def read_events(folder: pathlib.Path) -> Iterator[Event]:
    """Yield the kernel's name, its instruction ("" where the trace does not say) and seconds of each event.

    Of a GPU these are the kernels of its streams; of a CPU the instructions, but for those that call others.
    """
    for path in sorted(folder.rglob("*.xplane.pb")):
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        devices = [plane for plane in planes if plane.name.startswith("/device:") and "CUSTOM" not in plane.name]
        for plane in devices or planes:
            lines = list(plane.lines)
            streams = [line for line in lines if line.name.startswith("Stream")]
            for line in streams or lines:
                for event in line.events:
                    instruction = next((str(value) for name, value in event.stats if name == "hlo_op"), "")
                    if instruction or streams:
                        yield event.name, instruction, event.duration_ns / 1e9


def summarize(events: Iterable[Event], instructions: dict[str, tuple[str, str]], count: int) -> dict[str, Any]:
    """Return the shares of the time of events; see `profile`."""
    # A GPU's kernels are named as their instruction, dots and hyphens as underscores.
    by_kernel = {re.sub(r"[^\w]", "_", name): both for name, both in instructions.items()}
    kinds: dict[str, float] = collections.defaultdict(float)
    parts: dict[str, float] = collections.defaultdict(float)
    kernels: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    unnamed = 0.0
    for name, instruction, seconds in events:
        known = instructions.get(instruction) or by_kernel.get(re.sub(r"[^\w]", "_", name))
        kind, part = known or (_first(_KERNELS, [name]), "unknown")
        if kind == "loop" and instruction:
            # Its body's instructions have events of their own.
            continue
        unnamed += 0.0 if known else seconds
        kinds[kind] += seconds
        parts[part] += seconds
        # A command buffer is no instruction of the program: its kernels go by their own names.
        kernels[instruction if instruction in instructions else name, kind, part] += seconds
    total = sum(kinds.values())
    longest = [
        {"kernel": name, "kind": kind, "part": part, "ms": seconds * 1000 / count}
        for (name, kind, part), seconds in sorted(kernels.items(), key=lambda item: -item[1])[:_SHOWN]
    ]
    return {
        "device_seconds": total / count,
        "shares": _shares(kinds),
        "parts": _shares(parts),
        "without_instruction": unnamed / total if total else 0.0,
        "longest": longest,
    }


def _first(patterns: dict[str, str], names: Iterable[str]) -> str:
    names = list(names)
    for kind, pattern in patterns.items():
        if any(
            re.search(pattern, name) if pattern.startswith("(?i)") else re.fullmatch(pattern, name) for name in names
        ):
            return kind
    return OTHER


def _part(path: str) -> str:
    return next((part for part, pattern in PARTS.items() if re.search(pattern, path)), "")


def _shares(amounts: dict[str, float]) -> dict[str, float]:
    total = sum(amounts.values()) or 1.0
    return {name: amount / total for name, amount in sorted(amounts.items(), key=lambda item: -item[1])}

"""What a compiled program says of itself: memory of a device, and what devices send each other."""

import dataclasses
import re
from collections import defaultdict
from typing import Any

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
# Times that the array is sent and received; what each device keeps of it is not subtracted.
_COLLECTIVES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2, "all-to-all": 1, "collective-permute": 1}
_OPCODE = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (?P<result>.*?) (?P<opcode>[a-z][a-z0-9\-]*)\((?P<rest>.*)$")
_HEADER = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) (\(.*)?\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_ARRAY = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device: arguments, of which results may take the place, and what the work needs besides."""

    arguments: int
    aliased: int  # of the arguments, reused for results: what was donated
    work: int

    @property
    def total(self) -> int:
        """Bytes of both together."""
        return self.arguments + self.work


def memory_of(compiled: Any) -> Memory:
    """Of a ``jax.stages.Compiled``."""
    stats = compiled.memory_analysis()
    fresh = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Memory(stats.argument_size_in_bytes, stats.alias_size_in_bytes, stats.temp_size_in_bytes + fresh)


def collectives(text: str) -> dict[str, int]:
    """Bytes that pass through each device in one run, by kind of collective, of a program's HLO text.

    A loop's body counts as often as it runs. An array is counted in full, and twice where all devices reduce it and get
    the result; a collective that the compiler has spread over a chain of fusions counts once.
    """
    computations, entry = _computations(text)
    runs = _runs(computations, entry)
    sent: dict[tuple, tuple[str, int]] = {}
    for name, instructions in computations.items():
        for index, (result, opcode, rest) in enumerate(instructions):
            kind = opcode.removesuffix("-start")
            if kind not in _COLLECTIVES or not runs[name]:
                continue
            sizes = [_size(array) for array in _ARRAY.findall(result)] or [0]
            # What starts a collective returns what it was given as well.
            size = max(sizes) if opcode.endswith("-start") else sum(sizes)
            if kind == "reduce-scatter":
                size *= _group_size(rest)
            elif kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            channel = re.search(r"channel_id=(\d+)", rest) if "chain_id=" in rest else None
            key = (kind, channel.group(1)) if channel else (kind, name, index)
            sent[key] = kind, max(sent.get(key, ("", 0))[1], runs[name] * size * _COLLECTIVES[kind])
    total: dict[str, int] = defaultdict(int)
    for kind, size in sent.values():
        total[kind] += size
    return dict(total)


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
    """Instructions (result, opcode, rest) by computation, and the name of the one that is run."""
    computations, entry, name = {}, "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header["name"]
            computations[name] = []
            entry = name if header["entry"] else entry
        elif line == "}":  # a kernel's settings have lines of their own, which end with more of these
            name = None
        elif name is not None and (found := _OPCODE.match(line)):
            computations[name].append((found["result"], found["opcode"], found["rest"]))
    return computations, entry


def _runs(computations: dict, entry: str) -> dict[str, int]:
    """How often each computation runs in one run of the program."""
    runs = defaultdict(int)

    def visit(name: str, count: int) -> None:
        runs[name] += count
        for _, opcode, rest in computations.get(name, ()):
            times = _trips(computations, rest) if opcode == "while" else 1
            called = _CALLED.findall(rest)
            if branches := re.search(r"branch_computations=\{([^}]*)\}", rest):
                called += [branch.strip().lstrip("%") for branch in branches.group(1).split(",")]
            for other in called:
                visit(other, count * times)

    visit(entry, 1)
    return runs


def _trips(computations: dict, rest: str) -> int:
    """Runs of a loop's body: as the compiler notes them, or the constant that its condition compares with; else 1."""
    if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', rest):
        return int(known.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    instructions = computations.get(condition.group(1), ()) if condition else ()
    constants = [re.match(r"(\d+)\)", rest) for _, opcode, rest in instructions if opcode == "constant"]
    numbers = [int(found.group(1)) for found in constants if found]
    return numbers[0] if len(numbers) == 1 else 1


def _size(array: tuple[str, str]) -> int:
    dtype, shape = array
    size = _BYTES[dtype]
    for dim in filter(None, shape.split(",")):
        size *= int(dim)
    return size


def _group_size(rest: str) -> int:
    """Devices of one group: {{0,1},{2,3}}, [groups,devices]<=..., or a mesh with the axes that are used."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(found.group(1).split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(found.group(1))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(part.split("=") for part in found.group(1).split(","))
        size = 1
        for axis in found.group(2).split(","):
            size *= int(sizes[axis.strip()])
        return size
    return 1

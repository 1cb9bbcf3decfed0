"""The targets in C (`attack/native`): packet filter, listener, and the programs at an interface.

With clang's libFuzzer, which looks for inputs that reach new code; where that is missing, with gcc and a plain loop of
random changes. Both with the address and undefined-behaviour sanitizers. What was compiled is in `build/attack`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .inputs import CORPUS

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "attack" / "native"
BUILD = ROOT / "build" / "attack"
SOURCES = {
    "filter": ("filter.c", "assembler.c"),
    "listener": ("filter.c", "defence.c", "ebpf.c", "assembler.c"),
    "defence": ("defence.c", "ebpf.c", "assembler.c"),
    "broadcast": ("broadcast.c", "ebpf.c", "assembler.c", "timer.c"),
}
"""Of each target, by name: what of csrc/ is linked to it."""
NAMES = tuple(SOURCES)
SANITIZERS = "address,undefined"
INPUT_MAX = 1024
"""Bytes of an input: twenty frames."""


class Finding(Exception):
    """An input that breaks what it was given to. The text says which, and how to try it again."""


@dataclass(frozen=True)
class Compiler:
    """What makes the programs.

    Attributes:
        words: the command, up to the sources.
        lib_fuzzer: whether libFuzzer runs the targets.
    """

    words: tuple[str, ...]
    lib_fuzzer: bool

    @property
    def engine(self) -> str:
        return "libFuzzer" if self.lib_fuzzer else "a plain loop (clang's libFuzzer is not here)"


def has_lib_fuzzer() -> bool:
    """Whether there is a clang that links a target for libFuzzer."""
    if shutil.which("clang") is None:
        return False
    flags = ["-x", "c", f"-fsanitize=fuzzer,{SANITIZERS}", "-o", "/dev/null", "-"]
    source = "int LLVMFuzzerTestOneInput(void); int LLVMFuzzerTestOneInput(void) { return 0; }"
    return (
        subprocess.run(["clang", *flags], input=source, text=True, capture_output=True).returncode
        == 0
    )


def compiler(*, lib_fuzzer: bool) -> Compiler:
    """For libFuzzer, or for the plain loop."""
    engine = "fuzzer," if lib_fuzzer else ""
    return Compiler(
        (
            "clang" if lib_fuzzer else "gcc",
            *("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-pthread", f"-I{ROOT / 'csrc'}"),
            f"@{ROOT / 'csrc' / 'warnings'}",
            *("-Werror", f"-fsanitize={engine}{SANITIZERS}", "-fno-sanitize-recover=all"),
        ),
        lib_fuzzer,
    )


def build(name: str, by: Compiler) -> Path:
    """Compile a target; the program. Raises CalledProcessError."""
    program = BUILD / (name if by.lib_fuzzer else f"{name}-plain")
    BUILD.mkdir(parents=True, exist_ok=True)
    files = [NATIVE / f"{name}.c", *(ROOT / "csrc" / source for source in SOURCES[name])]
    if not by.lib_fuzzer:
        files.append(NATIVE / "plain.c")
    subprocess.run([*by.words, "-o", program, *files], check=True)
    return program


def attack(name: str, by: Compiler, seconds: int, seed: int) -> int:
    """Run a target for so long (0: the corpus alone); how many frames were tried. Raises Finding."""
    program = build(name, by)
    found = BUILD / f"found-{name}-"
    known = BUILD / "corpus" / name
    known.mkdir(parents=True, exist_ok=True)
    command: Sequence[str | Path]
    if by.lib_fuzzer:
        length = f"-max_total_time={seconds}" if seconds else "-runs=0"
        command = [program, length, f"-seed={seed}", f"-max_len={INPUT_MAX}", "-len_control=0"]
        command = [*command, f"-artifact_prefix={found}", known, CORPUS / name]
    else:
        command = [program, str(seconds), str(seed), CORPUS / name, f"{found}plain"]
    done = subprocess.run(
        [*without_aslr(), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "ASAN_OPTIONS": "abort_on_error=1"},
    )
    frames = re.search(r"^frames: (\d+)$", done.stderr, re.MULTILINE)
    if done.returncode != 0 or frames is None:
        files = ", ".join(map(str, sorted(BUILD.glob(f"found-{name}-*"))))
        raise Finding(f"{done.stderr[-6000:]}\n{name}: seed {seed}; the input: {files}")
    return int(frames[1])


def without_aslr() -> list[str]:
    """The sanitizers of older compilers cannot place their shadow memory where the kernel spreads its mappings."""
    tried = subprocess.run(["setarch", "-R", "true"], capture_output=True)
    return ["setarch", "-R"] if tried.returncode == 0 else []

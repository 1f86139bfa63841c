"""The process in which a submission runs: one cell at a time, as `labkit.grading.supervise` asks for it.

Two worlds, two sets of global names. The lab's own cells and tests run in one, answers and added cells in the other,
where the lab's cells that answers use run a second time. From an answer's world come only the names that the lab's
solution binds there, and functions come wrapped. So an answer that calls its own thing `torch` or `check` changes
nothing for the tests. An answer runs in a part of Python that leads nowhere else (`labkit.grading.subset`, `guards`).
Behind that, what it changes in the libraries is put back (`labkit.grading.integrity`), and how it could reach the
tests otherwise is forbidden (`labkit.grading.jail`).

In:  {"preload": [module, …], "extra": [module, …], "memory_mib", "file_mib", "open_files", "walled"}, then one line for
     each cell, {"nonce", "kind", "label", "code", "names", "points", "hidden", "shared"}; with "unguarded", an answer
     runs in all of Python, to try the walls behind.
Out: for each, {"nonce", "points", "error", "shown", "stdout", "odd": [sentence, …], "threads"}.

The nonce comes with the cell and proves the reply: what an answer wrote to the pipe before, it wrote without it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.grading.guards import Guards
from labkit.grading.integrity import Classes, Guard, Watch, leave_modes, modes, plain_builtins
from labkit.grading.jail import ANSWER, answers_in_threads, library_folders, lock, seal
from labkit.grading.subset import guarded, outside, problems
from labkit.grading.told import Told
from labkit.grading.worker import MAX_TEXT, describe, execute, points_of, private_streams

_PRELOAD = ("numpy", "fractions", "decimal", "dataclasses")  # what answers may use, before they do
_THREADS_MAY_END_S = 1.0
_FUNCTIONS = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    functools.partial,
    type(functools.cache(int)),
)


class Bounded(io.StringIO):
    """Text of which the beginning is kept and the rest is dropped."""

    def write(self, text: str, most: int = MAX_TEXT, plain: Any = io.StringIO.write, size: Any = len) -> int:
        """As io's; without a global name, because it is what an answer prints to."""
        room = most - self.tell()
        if room > 0:
            plain(self, text[:room])
        return size(text)

    def close(self) -> None:
        """The runner's business."""


Bounded.write = types.FunctionType(Bounded.write.__code__, {}, "write", Bounded.write.__defaults__)  # type: ignore[method-assign]


def main() -> None:
    """Serve cells until the input ends."""
    report, jobs = private_streams()
    head = json.loads(jobs.readline())
    _limit(head)
    sys.path[:] = [place for place in sys.path if place and Path(place).resolve() != Path.cwd()]  # answers write there
    for module in (*_PRELOAD, *head["preload"]):
        with contextlib.suppress(Exception):  # an import that fails here fails in the lab's own cell, and says so there
            importlib.import_module(module)
    runner = Runner(head["walled"], head["extra"])
    print(json.dumps({"nonce": "ready"}), file=report, flush=True)
    for line in jobs:
        job = json.loads(line)
        reply = runner.run(job)
        print(json.dumps({"nonce": job["nonce"], **reply}), file=report, flush=True)


def _limit(head: dict[str, Any]) -> None:
    try:
        import resource
    except ImportError:  # Windows, which grades with --trust only
        return
    wanted = {"RLIMIT_DATA": head["memory_mib"] << 20, "RLIMIT_FSIZE": head["file_mib"] << 20, "RLIMIT_CORE": 0}
    for name, value in (wanted | {"RLIMIT_NOFILE": head["open_files"]}).items():
        number = getattr(resource, name, None)
        if number is not None:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(number, (value, value))


class Runner:
    """The two worlds, and what watches over the first."""

    def __init__(self, walled: bool, extra: list[str]) -> None:
        self.lab: dict[str, Any] = {"__name__": "__main__", "__builtins__": plain_builtins()}
        module = types.ModuleType("__main__")
        self.answers = vars(module)
        sys.modules["__main__"] = module
        self.library = library_folders()
        self.guards = Guards(extra, lambda name: name.startswith(ANSWER))
        self.answers["__builtins__"] = self.guards.builtins()
        self.classes: Classes | None = None
        self.watch: Watch | None = None
        self.told = Told()
        self.odd: list[str] = []
        self.threads = 0
        if walled:
            seal()
        lock(self.library)

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one cell and say how it went."""
        self.odd, self.threads = [], 0
        out = Bounded()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            result = self._answer(job) if job["kind"] in ("answer", "extra") else self._own(job)
        return {**result, "stdout": out.getvalue(), "odd": self.odd, "threads": self.threads}

    def _answer(self, job: dict[str, Any]) -> dict[str, Any]:
        self.classes = self.classes or Classes(self.library)
        label, code, guard = job["label"], job["code"], Guard(self.library)
        for name in job["names"]:
            self.lab.pop(name, None)
        found = [] if job.get("unguarded") else problems(code)
        if found:
            error = shown = outside(found)
        else:
            entered = modes()
            error, shown = self._run_answer(label, code, bool(job.get("unguarded")))
            if leave_modes(entered):
                self.odd.append("the answer left one of torch's modes on.")
        self._note_changes(guard.mend())
        self._look(self.classes)
        for name in job["names"]:
            if name in self.answers:
                self.lab[name] = self._wrapped(self.answers[name])
        self.watch = None
        return {"points": 0.0, "error": error, "shown": shown}

    def _run_answer(self, label: str, code: str, unguarded: bool) -> tuple[str, str]:
        name = f"{ANSWER}{label}>"
        self.told.note(name, code)
        if unguarded:
            self.answers["__builtins__"] = plain_builtins()
        self.guards.at_cell = True
        try:
            return self._try(lambda: execute(name, code, self.answers, change=None if unguarded else guarded))[:2]
        finally:
            self.guards.at_cell = False

    def _own(self, job: dict[str, Any]) -> dict[str, Any]:
        label, code, entered = f"<{job['label']}>", job["code"], modes()
        points = job["points"] if job["kind"] == "test" else None
        self.told.note(label, code, job["hidden"])
        watch = Watch(self.library) if self.classes is not None and points is not None else None
        before = watch.values() if watch else []
        error, shown, value = self._try(lambda: execute(label, code, self.lab, shown=not job["hidden"]), watch, before)
        if job["shared"]:
            self._try(lambda: execute(label, code, self.answers))
        if self.classes is not None:
            self._look(self.classes)
        if points is not None:
            leave_modes(entered)
        if self.odd and points is not None and not error:
            error = shown = f"No points, because {self.odd[0]}"
        return {"points": 0.0 if error else points_of(value, points), "error": error, "shown": shown}

    def _try(
        self, act: Callable[[], Any], watch: Watch | None = None, before: list[list[Any]] | None = None
    ) -> tuple[str, str, Any]:
        """What went wrong, for the teacher and for the student, and what came out."""
        value, problem = None, None
        try:
            value = act()
        except BaseException as raised:  # also a cell that calls sys.exit
            problem = raised
        if watch is not None:
            self._note_changes(watch.mend(before or []))
        if problem is None:
            return "", "", value
        error = describe(problem)[:MAX_TEXT]
        return error, self.told.shown(problem, error, self.classes), None

    def _wrapped(self, answer: Any) -> Any:
        if type(answer) not in _FUNCTIONS:
            return answer

        @functools.wraps(answer)
        def call(*args: Any, **kwargs: Any) -> Any:
            watch = self.watch = self.watch or Watch(self.library)
            before = watch.values()
            try:
                found = answer(*args, **kwargs)
                self._note_lax((found, args, kwargs))
                return found
            finally:
                self._note_changes(watch.mend(before))

        return call

    def _look(self, classes: Classes) -> None:
        """After a cell: no thread of an answer goes on, and no class of one says itself how it compares."""
        until = time.monotonic() + _THREADS_MAY_END_S
        while (left := answers_in_threads(self.library)) and time.monotonic() < until:
            time.sleep(0.02)
        self.threads = left
        if left:
            self.odd.append("a thread of the answer goes on after its cell.")
        if found := classes.deceptive():
            self.odd.append(f"an answer's class says itself how it compares ({', '.join(found[:3])}).")

    def _note_lax(self, values: Any) -> None:
        """Of what an answer returns, and may have put into what it was given."""
        if self.classes is not None and (told := self.classes.lax(values, [*self.lab.values(), *self.guards.compared])):
            self.odd.append(f"an answer returned what compares in a way of its own ({told}).")

    def _note_changes(self, changed: list[str]) -> None:
        if changed:
            self.odd.append(f"an answer changed what tests use ({', '.join(changed[:3])}); it was put back.")


if __name__ == "__main__":
    main()

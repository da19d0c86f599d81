"""Runs of an experiment: kept when they are finished, on all cores, and the search over learning rates."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from pathlib import Path

import torch
from tqdm import tqdm

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)  # what a search may try
CACHE_VERSION = 1  # raise when a change makes cached runs wrong


def execute_all(
    execute: Callable, runs: list, title: str, cache: Path | None = None, workers: int | None = None
) -> list[dict]:
    """Executes runs in parallel processes of one thread each, with a progress bar.

    Args:
        execute: a function from a run to its record; processes import it.
        runs: what to do, dataclasses that are frozen and that JSON can hold.
        title: of the progress bar.
        cache: folder that keeps each finished run; None: none.
        workers: processes; None: one per core.

    Returns:
        A record for each run, in the runs' order.
    """
    records = {run: _read(cache_file(cache, run)) for run in runs} if cache else dict.fromkeys(runs)
    todo = [run for run in runs if records[run] is None]
    context = multiprocessing.get_context("spawn")  # a forked process may hang on torch's threads
    with ProcessPoolExecutor(workers or os.cpu_count(), context, torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(execute, run): run for run in todo}
        for future in tqdm(as_completed(futures), desc=title, total=len(runs), initial=len(runs) - len(todo)):
            record = json.loads(json.dumps(future.result()))  # as it comes back from a file
            records[futures[future]] = record
            if cache:
                cache.mkdir(parents=True, exist_ok=True)
                file = cache_file(cache, futures[future])
                file.with_suffix(".part").write_text(json.dumps(record))
                file.with_suffix(".part").replace(file)  # whole, or not there
    return [records[run] for run in runs]


def cache_file(cache: Path, run) -> Path:
    """Where the record of a run is kept: its name is made from all of the run's fields."""
    key = json.dumps([CACHE_VERSION, dataclasses.asdict(run)])
    return cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _read(file):
    return json.loads(file.read_text()) if file.exists() else None


def climb(start: dict, evaluate) -> dict:
    """Finds the best learning rate of each key, by the same rule for all: no best rate lies at an end.

    Args:
        start: {key: the rates to start with, neighbours in LEARNING_RATES}.
        evaluate: a function from a list of (key, rate) to a list of scores.

    Returns:
        {key: the rate with the highest score}, after its neighbours on both sides have been tried.
    """
    scores = {key: {} for key in start}
    new = [(key, rate) for key, rates in start.items() for rate in rates]
    while new:
        for (key, rate), score in zip(new, evaluate(new), strict=True):
            scores[key][rate] = score
        best = {key: max(tried, key=tried.get) for key, tried in scores.items()}
        new = []
        for key, rate in best.items():
            place = LEARNING_RATES.index(rate)
            neighbours = LEARNING_RATES[max(0, place - 1) : place + 2]
            new += [(key, neighbour) for neighbour in neighbours if neighbour not in scores[key]]
    return best


class NotRecorded(LookupError):
    """A run is asked for that has not been done."""


class Records:
    """Finished runs, in a file of one JSON a line; it grows at its end alone.

    Args:
        path: the file; it need not exist.
        run_of: from a record to its run, whose `key` tells it from all others.
        execute: what makes a run's record; None: a run that is not there raises NotRecorded.
    """

    def __init__(self, path: Path, run_of: Callable, execute: Callable | None = None):
        self.path, self.execute, self.records = path, execute, {}
        for record in read(path):
            self.records[run_of(record).key] = record

    def __call__(self, run) -> dict:
        """The record of a run, which is executed and written down if it is new."""
        if run.key not in self.records:
            if self.execute is None:
                raise NotRecorded(f"{self.path} has no record of {run}; run the stage `search` to its end")
            self.records[run.key] = self.execute(run)
            append(self.path, self.records[run.key])
        return self.records[run.key]


def read(path: Path) -> list[dict]:
    """The records in a file; a line that an interruption has cut off is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def append(path: Path, record: dict) -> None:
    """Writes a record at the end of a file, by one call: two processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    line = ("\n" if torn else "") + json.dumps(record, separators=(",", ":")) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def work(jobs: list[tuple], workers: int, title: str) -> None:
    """Does jobs (function, *arguments) in processes of one thread, in their order, with a progress bar."""
    context = multiprocessing.get_context("spawn")  # a forked process may hang on torch's threads
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        waiting = {pool.submit(*job) for job in jobs}
        with tqdm(total=len(jobs), desc=title) as bar:
            while waiting:
                done, waiting = wait(waiting, return_when="FIRST_COMPLETED")
                for future in done:
                    future.result()
                    bar.update()

"""Runs of an experiment: kept when they are finished, done on all cores, and searched by one rule."""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path

import torch
from tqdm import tqdm

Point = tuple[int, ...]  # of a grid


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


def climb(
    start: Iterable[Point],
    neighbours: Callable,
    everything: Iterable[Point],
    evaluate,
    trials: int,
    limit: int,
) -> tuple[Point, bool]:
    """Finds the best point of a grid, one trial after the other.

    First the points of the start. Then, each time, a neighbour of the best point so far that has not
    been tried; where none is left, the untried point that is nearest. It ends after `trials` trials,
    unless the best point still has an untried neighbour: then it goes on, up to `limit`.

    Args:
        start: points to begin with.
        neighbours: point -> the points one step away along one axis.
        everything: all points of the grid.
        evaluate: point -> score.

    Returns:
        The best point, and whether all of its neighbours were tried.
    """
    scores = {point: evaluate(point) for point in start}
    everything = list(everything)
    while True:
        best = max(scores, key=scores.get)
        untried = [point for point in neighbours(best) if point not in scores]
        if len(scores) >= limit or (len(scores) >= trials and not untried):
            return best, not untried
        if not untried:
            rest = [point for point in everything if point not in scores]
            if not rest:
                return best, True
            untried = [min(rest, key=lambda point: sum(abs(a - b) for a, b in zip(point, best, strict=True)))]
        scores[untried[0]] = evaluate(untried[0])


def line(length: int, start, evaluate) -> int:
    """The best place on a line: `climb` until both neighbours of the best were tried."""
    points = [(place,) for place in start if 0 <= place < length]

    def neighbours(point):
        return [(place,) for place in (point[0] - 1, point[0] + 1) if 0 <= place < length]

    (best,), _ = climb(points, neighbours, [(i,) for i in range(length)], evaluate, 0, length)
    return best


def rates_inside(rates: tuple, start: tuple, shots: tuple, evaluate) -> dict[int, tuple[float, float]]:
    """The best rate for each number of examples: tried until for none of them it lies at an end.

    Args:
        rates: all that may be tried, in their order.
        start: those to begin with.
        shots: numbers of examples.
        evaluate: new rates -> {(shots, rate): score}.

    Returns:
        {shots: (the best rate, its score)}
    """
    scores, new = {}, start
    while new:
        scores |= evaluate(new)
        chosen = {n: max(_of(scores, n), key=_of(scores, n).get) for n in shots}
        places = {rates.index(rate) for rate in chosen.values()}
        around = {i + step for i in places for step in (-1, 1)} & set(range(len(rates)))
        new = tuple(rates[i] for i in sorted(around) if rates[i] not in _of(scores, shots[0]))
    return {n: (rate, scores[n, rate]) for n, rate in chosen.items()}


def _of(scores, shots):
    return {rate: value for (s, rate), value in scores.items() if s == shots}

"""Maze: a way through a small grid, as a row of moves."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from entrocraft.lab.tasks.base import ANSWER_INSTRUCTION, Problem, Split, Task, split_of

Cell = tuple[int, int]

_MOVES: dict[str, Cell] = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
_PATH = re.compile(r"[UDLR]{1,256}")
_OPEN, _WALL, _START, _GOAL = ".#SG"


@dataclass
class MazeTask(Task):
    """Grids such as ``S.#/..G/#..:``; the answer is a row of moves, ``DRR``, from S to G.

    A path may be longer than it has to be, so that a problem has many right answers.

    Attributes:
        size: rows and columns.
        walls: share of the cells that are walls.
        min_distance, max_distance: fewest moves from S to G.
        longest: path that is still right, in moves.
    """

    name: ClassVar[str] = "maze"

    size: int = 5
    walls: float = 0.3
    min_distance: int = 3
    max_distance: int = 8
    longest: int = 20

    def __post_init__(self) -> None:
        if not 2 <= self.size <= 12:
            raise ValueError(f"size={self.size}; use 2 to 12")
        if not 0 <= self.walls < 1:
            raise ValueError(f"walls={self.walls} is a share; use a number in [0, 1)")
        if not 1 <= self.min_distance <= self.max_distance <= self.longest <= 256:
            raise ValueError(
                f"min_distance={self.min_distance}, max_distance={self.max_distance}, "
                f"longest={self.longest}; use 1 <= min_distance <= max_distance <= longest <= 256"
            )

    def candidates(self, split: Split, seed: int) -> Iterator[tuple[Problem | None, int]]:
        """Grids drawn at random; those without a way of a wanted length are left out."""
        rng = random.Random(f"{self.name}:{split}:{seed}")
        while True:
            problem = self._problem(rng)
            mine = problem is not None and split_of(self.name, problem.key) == split
            yield problem if mine else None, 1

    def _problem(self, rng: random.Random) -> Problem | None:
        cells = [(row, column) for row in range(self.size) for column in range(self.size)]
        start, goal, *others = rng.sample(cells, len(cells))
        grid = dict.fromkeys(cells, _OPEN) | {start: _START, goal: _GOAL}
        grid |= {cell: _WALL for cell in others if rng.random() < self.walls}
        rows = [[grid[row, column] for column in range(self.size)] for row in range(self.size)]
        text = "/".join(map("".join, rows))
        far = distances(text, goal)
        if not self.min_distance <= far.get(start, 0) <= self.max_distance:
            return None
        question = (
            "Find a way from S to G in this grid; # is a wall. Answer with a row of the moves U, "
            "D, L and R (up, down, left, right), for example RRD.\n\n"
            f"{text.replace('/', chr(10))}\n\n{ANSWER_INSTRUCTION}"
        )
        return Problem(text, f"{text}:", question, _downhill(far, start), {"grid": text})

    def demonstration(self, problem: Problem, rng: random.Random, skill: float = 1.0) -> str:
        """A random way without loops, often longer than need be; or as many random moves."""
        text = problem.metadata["grid"]
        start, goal = _find(text, _START), _find(text, _GOAL)
        path = _without_loops(text, start, goal, rng)
        while len(path) > self.longest:
            path = _without_loops(text, start, goal, rng)
        if rng.random() >= skill:
            return "".join(rng.choices("UDLR", k=len(path)))
        return path

    def score(self, problem: Problem, answer: str) -> float:
        """1.0 where the moves lead from S to G and through no wall, else 0.0."""
        moves, text = "".join(answer.split()), problem.metadata["grid"]
        if not _PATH.fullmatch(moves) or len(moves) > self.longest:
            return 0.0
        cell = _find(text, _START)
        for move in moves:
            cell = _step(cell, move)
            if _at(text, cell) in (None, _WALL):
                return 0.0
        return float(_at(text, cell) == _GOAL)


def distances(text: str, goal: Cell) -> dict[Cell, int]:
    """Fewest moves to `goal` from each cell that it can be reached from.

    >>> distances("S#/.G", (1, 1))[0, 0]
    2
    """
    found, edge = {goal: 0}, [goal]
    for cell in edge:
        for move in _MOVES:
            near = _step(cell, move)
            if near not in found and _at(text, near) not in (None, _WALL):
                found[near] = found[cell] + 1
                edge.append(near)
    return found


def _downhill(far: dict[Cell, int], cell: Cell) -> str:
    """A shortest path."""
    path = ""
    while far[cell]:
        move = next(m for m in _MOVES if far.get(_step(cell, m)) == far[cell] - 1)
        path, cell = path + move, _step(cell, move)
    return path


def _without_loops(text: str, start: Cell, goal: Cell, rng: random.Random) -> str:
    """A random walk from start to goal, whose loops are cut out."""
    cells, moves = [start], ""
    while cells[-1] != goal:
        move = rng.choice("UDLR")
        near = _step(cells[-1], move)
        if near in cells:
            place = cells.index(near)
            cells, moves = cells[: place + 1], moves[:place]
        elif _at(text, near) not in (None, _WALL):
            cells.append(near)
            moves += move
    return moves


def _at(text: str, cell: Cell) -> str | None:
    """What is in a cell; None outside the grid."""
    rows = text.split("/")
    inside = 0 <= cell[0] < len(rows) and 0 <= cell[1] < len(rows[0])
    return rows[cell[0]][cell[1]] if inside else None


def _find(text: str, mark: str) -> Cell:
    rows = text.split("/")
    [found] = [(i, row.index(mark)) for i, row in enumerate(rows) if mark in row]
    return found


def _step(cell: Cell, move: str) -> Cell:
    down, right = _MOVES[move]
    return cell[0] + down, cell[1] + right

"""What the runs of evidence.py come to: means over seeds, differences with intervals, speedups between completed runs."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tst_lightning.commands.scoring import doubling_ranges
from tst_lightning.compare.frontier import flops_on_frontier
from tst_lightning.compare.intervals import difference, ratio, summary
from tst_lightning.compare.referee import TOLERANCE
from tst_lightning.published import Cell, load_grids
from tst_lightning.sweep.surface import Surface, agreement

Runs = Sequence[Mapping[str, Any]]
Parts = Mapping[str, Mapping[str, Runs]]


def losses(runs: Runs) -> dict[str, float]:
    """Final validation loss by seed, nats a token."""
    return {str(run["seed"]): run["final_val_loss"] for run in runs}


def answers(setting: Mapping[str, Any], found: Parts) -> dict[str, Any]:
    """The answer to each question whose runs are there; those of equal FLOPs must be.

    Args:
        setting: the setting file.
        found: the cases of sweep.json by part and arm, as evidence.py has them.
    """
    asked: dict[str, Any] = {}
    ends = {name: runs for part in ("lengths", "longer", "longest") for name, runs in found.get(part, {}).items()}
    ends |= {f"{arm} 1": runs for arm, runs in found["equal_flops"].items()}
    asked["equal_flops"] = _by_length(ends)
    asked["positions"] = _by_position(found["equal_flops"])
    if "lengths" in found or "longer" in found:
        asked["equal_loss"] = _equal_loss(ends)
        asked["equal_data"] = _equal_data(ends)
    if "origin" in found:
        asked["origin"] = _arms({**found["equal_flops"], **found["origin"]})
    if also := _at_each_length(ends, found.get("baseline_also", {})):
        asked["baseline_also"] = also
    if "unique" in found:
        asked["unique"] = {
            length: _arms(
                {name.split()[0]: runs for name, runs in found["unique"].items() if name.endswith(f" {length}")}
            )
            for length in dict.fromkeys(name.split()[1] for name in found["unique"])
        }
    if "sizes" in found:
        main = {f"{arm} {setting['main']}": runs for arm, runs in found["equal_flops"].items()}
        asked["sizes"] = _by_length({**found["sizes"], **main})
    if "surface" in found:
        asked["surface"] = _surface(found["surface"])
    return asked


def _arms(found: Mapping[str, Runs]) -> dict[str, Any]:
    """Each arm's loss, and its difference from the baseline's and from TST's."""
    return {
        name: {
            "loss": summary(list(losses(runs).values())),
            "by_seed": losses(runs),
            "steps": runs[0]["settings"]["trainer.max_steps"],
            "tokens": runs[0]["tokens"],
            "passes": runs[0]["passes"],
            "to_baseline": difference(losses(runs), losses(found["baseline"])),
            "to_tst": difference(losses(runs), losses(found["tst"])),
        }
        for name, runs in found.items()
    }


def _at_each_length(ends: Mapping[str, Runs], others: Mapping[str, Runs]) -> dict[str, Any]:
    """Further arms, named "NAME at LENGTH", beside both arms of that length, where those have finished."""
    made = {}
    for length in dict.fromkeys(name.rpartition(" at ")[2] for name in others):
        arms = {arm: ends[f"{arm} {length}"] for arm in ("baseline", "tst") if f"{arm} {length}" in ends}
        if len(arms) < 2:
            continue
        of = {name.rpartition(" at ")[0]: runs for name, runs in others.items() if name.endswith(f" at {length}")}
        made[length] = _arms({**arms, **of})
    return made


def _by_length(ends: Mapping[str, Runs]) -> dict[str, Any]:
    """Both arms at one FLOPs, by what follows their names: a length or a size."""
    places = {name.split(" ", 1)[1] for name in ends}
    made = {}
    for place in places:
        baseline, tst = (ends.get(f"{arm} {place}") for arm in ("baseline", "tst"))
        if baseline and tst:
            assert baseline[0]["flops"] == tst[0]["flops"], place
            made[place] = {
                "flops": baseline[0]["flops"],
                "steps": baseline[0]["settings"]["trainer.max_steps"],
                "parameters": baseline[0]["parameters"],
                "positions": baseline[0]["positions"],
                "baseline": summary(list(losses(baseline).values())) | {"by_seed": losses(baseline)},
                "tst": summary(list(losses(tst).values())) | {"by_seed": losses(tst)},
                "difference": difference(losses(tst), losses(baseline)),
            }
    return dict(sorted(made.items(), key=lambda item: item[1]["flops"]))


def _by_position(found: Mapping[str, Runs]) -> list[dict[str, Any]]:
    """Both arms at each part of the context, its positions counted from 0; parts double in length."""
    length = len(found["baseline"][0]["loss_by_position"])
    made = []
    for part in doubling_ranges(length):
        by_seed = {
            arm: {str(run["seed"]): fmean(run["loss_by_position"][part.start : part.stop]) for run in runs}
            for arm, runs in found.items()
        }
        apart = difference(by_seed["tst"], by_seed["baseline"])
        means = {arm: summary(list(values.values())) for arm, values in by_seed.items()}
        made.append({"first": part.start, "last": part.stop - 1, "difference": apart, **means})
    return made


def _equal_loss(ends: Mapping[str, Runs]) -> list[dict[str, Any]]:
    """TST's final loss at each length, asked of the baseline's completed runs: a seed's of those of the same seed."""
    made = []
    for name, tst in ends.items():
        baselines = [runs for other, runs in ends.items() if other.startswith("baseline")]
        if name.startswith("baseline") or len(baselines) < 2:
            continue
        spent, read = {}, {}
        for run in tst:
            same = [one for runs in baselines for one in runs if one["seed"] == run["seed"]]
            frontier = sorted((one["flops"], one["final_val_loss"]) for one in same)
            found = flops_on_frontier(frontier, run["final_val_loss"])
            if found is not None:
                seed = str(run["seed"])
                spent[seed], read[seed] = run["flops"], found
        made.append(
            {
                "steps": tst[0]["settings"]["trainer.max_steps"],
                "seeds": len(tst),
                "baseline_flops": read,
                "flops": tst[0]["flops"],
                "speedup": ratio(read, spent) if read else None,
            }
        )
    return sorted(made, key=lambda each: each["flops"])


def _equal_data(ends: Mapping[str, Runs]) -> list[dict[str, Any]]:
    """Pairs of a TST run and a longer baseline run that read the same number of tokens."""
    made = []
    for name, tst in ends.items():
        for other, baseline in ends.items():
            if name.startswith("tst") and other.startswith("baseline"):
                apart = abs(baseline[0]["tokens"] / tst[0]["tokens"] - 1)
                if apart <= TOLERANCE["tokens"]:
                    made.append(
                        {
                            "tokens": tst[0]["tokens"],
                            "flops_ratio": baseline[0]["flops"] / tst[0]["flops"],
                            "baseline": summary(list(losses(baseline).values())),
                            "tst": summary(list(losses(tst).values())),
                            "difference": difference(losses(tst), losses(baseline)),
                        }
                    )
    return sorted(made, key=lambda pair: pair["tokens"])


def _surface(found: Mapping[str, Runs]) -> dict[str, Any]:
    """Mean losses over s and r, and how they rank beside each published grid of uniform weights, over common cells."""
    means = {name: summary(list(losses(runs).values()))["mean"] for name, runs in found.items()}
    cells = {
        Cell(int(name.split()[1]), float(name.split()[2])): mean
        for name, mean in means.items()
        if name.startswith("tst")
    }
    surface = Surface(cells, {}, means["baseline 1 0"], ())
    ranked = {grid.name: agreement(surface, grid) for grid in load_grids() if grid.weighting == "uniform"}
    return {
        "seeds": len(found["baseline 1 0"]),
        "steps": found["baseline 1 0"][0]["settings"]["trainer.max_steps"],
        "baseline": surface.baseline,
        "cells": [{"bag_size": cell.bag_size, "share": cell.ratio, "loss": loss} for cell, loss in cells.items()],
        "published": {name: {"cells": each.cells, "spearman": each.spearman} for name, each in ranked.items()},
    }

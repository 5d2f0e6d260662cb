"""The published results, as data: what a plan recommends from, and what a sweep is laid beside.

The tables are those of Peng, Gigant, Quesnelle, "Efficient Pre-Training with Token Superposition", arXiv 2605.06546 (v2,
May 2026): the grids of final loss over bag size and superposition ratio, and the main results. Each cell is one value; the
paper gives no spread over seeds.
"""

from tst_lightning.published.tables import Cell, Grid, PublishedRun, load_grids, load_runs

SOURCE = "Peng, Gigant, Quesnelle, arXiv 2605.06546 (v2, May 2026)"

__all__ = ["SOURCE", "Cell", "Grid", "PublishedRun", "load_grids", "load_runs"]

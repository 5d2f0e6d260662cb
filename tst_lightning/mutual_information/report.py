"""What becomes of a measurement: a JSON file and a chart beside the shards, and the lines that the command prints."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tst_lightning.bags import DCLM_FIT
from tst_lightning.mutual_information.chart import draw_decay
from tst_lightning.mutual_information.fit import Fit, fit_power_law
from tst_lightning.mutual_information.measure import SEED, Measurement
from tst_lightning.shards.manifest import Manifest
from tst_lightning.whole_file import write_whole

NAME = "mutual_information"
_NEGLIGIBLE = 1e-6  # nats
_SHOWN = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # distances that are printed, beside powers of 2 and the last one


def write_report(measurement: Measurement, manifest: Manifest, folder: Path) -> list[str]:
    """Fits the measured values, and writes them and their chart: ``mutual_information.json`` and ``.png``.

    Args:
        measurement: of the shards' train split.
        manifest: of the shards.
        folder: of the shards; their manifest knows nothing of the two files.

    Returns:
        Lines to print: a table, the fits, and the YAML that weights bags by the corrected one.

    Raises:
        OSError: the files can't be written.
    """
    distances = [estimate.distance for estimate in measurement.estimates]
    fits = {
        "corrected": fit_power_law(distances, [estimate.corrected for estimate in measurement.estimates]),
        "plug_in": fit_power_law(distances, [estimate.plug_in for estimate in measurement.estimates]),
    }
    content = {
        "unit": "nats",
        "train_sha256": manifest.train.sha256,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "vocab_size": manifest.vocab_size,
        "tokens": measurement.tokens,
        "tokens_read": measurement.tokens_read,
        "seed": SEED,
        "fits": {name: _plain(fit) for name, fit in fits.items()},
        "weighting": asdict(fits["corrected"].law),
        "estimates": [asdict(estimate) | {"corrected": estimate.corrected} for estimate in measurement.estimates],
    }
    write_whole(folder / f"{NAME}.json", json.dumps(content, indent=2) + "\n")
    write_whole(folder / f"{NAME}.png", draw_decay(measurement, fits["corrected"]))
    return _lines(measurement, fits, folder)


def _plain(fit: Fit) -> dict[str, Any]:
    return {**asdict(fit.law), "r_squared": fit.r_squared, "residual": fit.residual}


def _lines(measurement: Measurement, fits: dict[str, Fit], folder: Path) -> list[str]:
    law, last = fits["corrected"].law, measurement.estimates[-1].distance
    lines = [
        f"mutual information of tokens i apart in a document, in nats, from {measurement.tokens_read:,} of the"
        f" {measurement.tokens:,} tokens of train",
        f"{'i':>6} {'pairs':>13} {'plug-in':>9} {'shuffled':>9} {'corrected':>9} {'fit':>9}",
    ]
    for estimate in measurement.estimates:
        i = estimate.distance
        if i in _SHOWN or i & (i - 1) == 0 or i == last:
            numbers = (estimate.plug_in, estimate.shuffled, estimate.corrected, law(i))
            lines.append(f"{i:>6} {estimate.pairs:>13,} " + " ".join(f"{number:>9.4f}" for number in numbers))
    lines += [f"fit        {_formula(fits['corrected'])}, of the corrected values"]
    lines += [f"           {_formula(fits['plug_in'])}, of the plug-in values, which are biased upwards"]
    lines += [f"           {DCLM_FIT.constant} + {DCLM_FIT.factor} * i^{DCLM_FIT.exponent}, the paper's of DCLM"]
    lines += [f"written    {folder / NAME}.json and {NAME}.png"]
    if law.factor < _NEGLIGIBLE:
        return [*lines, "yaml       none: the corrected values do not fall with the distance"]
    constants = ", ".join(f"{name}: {value:.4g}" for name, value in asdict(law).items())
    return [*lines, f"yaml       weighting: {{{constants}}}"]


def _formula(fit: Fit) -> str:
    law = fit.law
    return (
        f"{law.constant:.4g} + {law.factor:.4g} * i^{law.exponent:.4g}, R^2 {fit.r_squared:.4f}, residual"
        f" {fit.residual:.2g} nats"
    )

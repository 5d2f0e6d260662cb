"""What there is to spend, as optimizer steps of the baseline; and how fast devices spend it."""

from dataclasses import dataclass

from tst_lightning.compare.runs import read_run
from tst_lightning.errors import ConfigError
from tst_lightning.flops import named_peak


@dataclass(frozen=True)
class Speed:
    """Model FLOPs that one device does in a second, and where the figure comes from."""

    flops_per_second: float
    source: str


def speed_of(device: str | None, peak_flops: float | None, mfu: float | None) -> Speed | None:
    """Speed from a peak, known or given, and a utilisation.

    Args:
        device: a name such as H100, whose dense bfloat16 peak is known.
        peak_flops: FLOP/s of one device, where its name is not known.
        mfu: model-FLOPs utilisation, 0 to 1.

    Returns:
        None where nothing was said of the utilisation: none is assumed.

    Raises:
        ConfigError: an unknown device without its peak, a utilisation without a peak or outside (0, 1].
    """
    peak = peak_flops
    if peak is None and device is not None:
        peak = named_peak(device)
        if peak is None:
            raise ConfigError(f"the peak of device '{device}' is not known; give it with --peak_flops (FLOP/s, dense)")
    if peak is not None and peak <= 0:
        raise ConfigError(f"--peak_flops is {peak:g}; it must be above 0")
    if mfu is None:
        return None
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu is {mfu:g}; it is a share of the peak, above 0 and at most 1")
    if peak is None:
        raise ConfigError("--mfu is a share of a device's peak; name the device with --device, or give --peak_flops")
    return Speed(peak * mfu, f"{mfu:.0%} of {peak:.4g} FLOP/s{f', {device}' if device else ''}")


def measured_speed(run_dir: str) -> Speed:
    """Speed of one device as a run measured it: its model FLOPs over its training seconds.

    Args:
        run_dir: folder of a run.

    Raises:
        ConfigError: no run, no validation in it, or no seconds.
        RunError: its files are damaged.
    """
    run = read_run(run_dir)
    devices = int(str(run.record.get("device", "1")).partition(" ")[0])
    if run.final.seconds <= 0:
        raise ConfigError(f"run {run_dir} recorded no training time; name another with --like")
    per_device = run.final.flops / run.final.seconds / devices
    return Speed(per_device, f"measured in {run_dir} on {run.record.get('device')}, {run.record.get('precision')}")


@dataclass(frozen=True)
class Budget:
    """What the user has, in one unit; the others None.

    Attributes:
        steps: optimizer steps.
        flops: model FLOPs of one arm.
        device_hours: of one arm, summed over devices.
        tokens: that the baseline reads; superposition reads more with the same compute.
    """

    steps: int | None = None
    flops: float | None = None
    device_hours: float | None = None
    tokens: float | None = None

    def in_steps(
        self, flops_per_step: int, positions_per_step: int, speed: Speed | None, configured: int | None
    ) -> tuple[int, str]:
        """Whole steps of the baseline that it pays for.

        Args:
            flops_per_step: of the baseline, over all devices.
            positions_per_step: over all devices.
            speed: of one device; needed for device hours.
            configured: what stands where no budget is given.

        Returns:
            The steps, and the budget in words.

        Raises:
            ConfigError: none is given, more than one, one not above 0, one that pays for no step; hours without a speed.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) > 1:
            named = " and ".join(f"--{name}" for name in given)
            raise ConfigError(f"{named} are given; a plan has one budget, choose one")
        if not given:
            if configured is None:
                raise ConfigError("no budget; give --steps, --flops, --device_hours or --tokens")
            return configured, "trainer.max_steps of the configuration"
        name, value = next(iter(given.items()))
        if not 0 < value < float("inf"):
            raise ConfigError(f"--{name} is {value:g}; it must be above 0")
        if name == "device_hours":
            if speed is None:
                raise ConfigError(
                    "--device_hours needs the speed of a device; give --device (or --peak_flops) and --mfu, or --like"
                )
            steps = int(value * 3600 * speed.flops_per_second // flops_per_step)
        else:
            unit = {"steps": 1, "flops": flops_per_step, "tokens": positions_per_step}[name]
            steps = int(value // unit)
        if steps < 1:
            raise ConfigError(
                f"--{name} {value:g} does not pay for one step of {positions_per_step:,} positions"
                f" ({flops_per_step:.4g} FLOPs); give more"
            )
        return steps, f"--{name} {value:,.6g}"

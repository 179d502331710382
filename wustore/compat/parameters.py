"""The parameters of a KBMOD search: names, defaults, sections, and which values are valid.

Names, defaults and their order are KBMOD's (April 2026).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["PARAMETERS", "PARAMETER_BY_NAME", "SECTIONS", "Parameter"]


SECTIONS = ("core", "filtering", "stamps", "clustering", "output", "other")
"""Sections of a configuration file, in the order they are written."""


Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Parameter:
    """What is known about a search parameter.

    Attributes
    ----------
    default
        The value if none is set.
    section
        One of `SECTIONS`.
    check
        Whether a value is valid; may raise for one that is not.
    """

    name: str
    default: Any
    section: str
    help: str
    check: Check

    def __str__(self) -> str:
        return f"{self.name}: {self.help} (Default: {self.default})"

    def accepts(self, value: Any) -> bool:
        """Return whether ``value`` is valid."""
        try:
            return bool(self.check(value))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            return False


def _is(*kinds: type) -> Check:
    return lambda value: isinstance(value, kinds)


_flag, _text, _integer, _number = _is(bool), _is(str), _is(int), _is(int, float)


def _anything(value: Any) -> bool:
    return True


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _positive_integer(value: Any) -> bool:
    return _integer(value) and value > 0


def _not_negative(value: Any) -> bool:
    return _number(value) and value >= 0


def _interval(value: Any) -> bool:
    return len(value) == 2 and bool(value[0] < value[1])


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _one_of(*choices: Any) -> Check:
    return lambda value: value in choices


def _list_of(*choices: str) -> Check:
    return lambda value: isinstance(value, list) and all(item in choices for item in value)


_TWELVE_DEGREES = math.pi / 15


_GENERATOR = {
    "name": "EclipticCenteredSearch",
    "velocities": [92.0, 526.0, 257],
    "angles": [-_TWELVE_DEGREES, _TWELVE_DEGREES, 129],
    "angle_units": "radian",
    "velocity_units": "pix / d",
    "given_ecliptic": None,
}


PARAMETERS: tuple[Parameter, ...] = (
    Parameter("clip_negative", False, "filtering", "Leave negative values out when sigma-G takes percentiles.", _flag),
    Parameter("cluster_eps", 20.0, "clustering", "Neighbourhood size of the clustering [pixel].", _not_negative),
    Parameter("cluster_type", "all", "clustering", "Which quantities the clustering compares.", _text),
    Parameter(
        "cluster_v_scale", 1.0, "clustering", "Weight of velocity against position in clustering.", _not_negative
    ),
    Parameter(
        "color_scale",
        None,
        "core",
        "Magnitude correction of each filter, by filter name.",
        _or_none(_is(dict, int, float)),
    ),
    Parameter("cnn_filter", False, "filtering", "Judge stamps with a neural network.", _flag),
    Parameter("cnn_model", None, "filtering", "File of the neural network's weights.", _or_none(_text)),
    Parameter(
        "cnn_coadd_type",
        "mean",
        "filtering",
        "Coadd that the network sees: mean, median or sum.",
        _one_of("mean", "median", "sum"),
    ),
    Parameter("cnn_stamp_radius", 49, "filtering", "Radius of the stamps the network sees [pixel].", _positive_integer),
    Parameter("cnn_model_type", "resnet18", "filtering", "Architecture of the network, such as resnet18.", _text),
    Parameter(
        "coadds",
        [],
        "stamps",
        "Coadds to make of each result: mean, median, sum, weighted.",
        _list_of("mean", "median", "sum", "weighted"),
    ),
    Parameter("compute_ra_dec", True, "output", "Add sky positions to each result.", _flag),
    Parameter("cpu_only", False, "other", "Stay on the CPU even if there is a GPU.", _flag),
    Parameter("debug", False, "other", "Log debugging messages.", _flag),
    Parameter("do_clustering", True, "clustering", "Merge results that belong together.", _flag),
    Parameter("drop_columns", [], "output", "Columns to leave out of the results table.", _texts),
    Parameter(
        "encode_num_bytes",
        -1,
        "core",
        "Bytes per pixel value on the GPU: 1, 2 or 4; -1 leaves values as they are.",
        _one_of(-1, 1, 2, 4),
    ),
    Parameter(
        "generator_config",
        _GENERATOR,
        "core",
        "Which trajectories to try: the generator's name and its settings.",
        lambda value: isinstance(value, dict) and "name" in value,
    ),
    Parameter("generate_psi_phi", True, "filtering", "Compute psi and phi curves and keep them.", _flag),
    Parameter("gpu_filter", False, "filtering", "Do a first sigma-G filtering on the GPU.", _flag),
    Parameter("lh_level", 10.0, "filtering", "Lowest log-likelihood of a result that is kept.", _number),
    Parameter(
        "max_masked_pixels",
        0.5,
        "core",
        "Largest masked fraction of an image that is still used.",
        lambda value: _number(value) and 0.0 <= value <= 1.0,
    ),
    Parameter("max_results", 100_000, "filtering", "Most results to keep after all filters.", _integer),
    Parameter(
        "near_dup_thresh", 10, "filtering", "Distance below which results are near duplicates [pixel].", _integer
    ),
    Parameter("nightly_coadds", False, "stamps", "Make one more coadd for each calendar date.", _flag),
    Parameter("num_obs", 10, "filtering", "Fewest valid observations of a trajectory that is kept.", _integer),
    Parameter(
        "peak_offset_max",
        None,
        "filtering",
        "Largest distance between predicted and found peak [pixel].",
        _or_none(_number),
    ),
    Parameter("pred_line_cluster", False, "filtering", "Cluster results along predicted lines.", _flag),
    Parameter(
        "pred_line_params",
        [4.0, 2, 60],
        "filtering",
        "The three settings of the line prediction.",
        lambda value: isinstance(value, list) and len(value) == 3,
    ),
    Parameter(
        "psf_val",
        1.4,
        "core",
        "Width (standard deviation) of the Gaussian PSF if the data bring none [pixel].",
        lambda value: _number(value) and value > 0.0,
    ),
    Parameter("result_filename", None, "core", "File to save the results to.", _or_none(_text)),
    Parameter(
        "results_per_pixel", 8, "filtering", "Most results for each starting pixel from the GPU.", _positive_integer
    ),
    Parameter("save_all_stamps", False, "output", "Keep the stamps of every time with the results.", _flag),
    Parameter("save_config", True, "output", "Save the configuration next to the results.", _flag),
    Parameter(
        "separate_col_files",
        ["all_stamps"],
        "output",
        "Result columns (regular expressions) that get files of their own.",
        _texts,
    ),
    Parameter("sigmaG_filter", True, "filtering", "Filter light curves with sigma-G.", _flag),
    Parameter(
        "sigmaG_lims",
        [25, 75],
        "filtering",
        "Lower and upper percentile of sigma-G.",
        lambda value: _interval(value) and all(_number(item) for item in value),
    ),
    Parameter("stamp_radius", 10, "stamps", "Radius of the stamps [pixel].", _positive_integer),
    Parameter(
        "stamp_type",
        "sum",
        "stamps",
        "How stamps are combined: sum, mean, median, weighted.",
        _one_of("sum", "mean", "median", "weighted"),
    ),
    Parameter(
        "timeout_hours", None, "other", "Hours after which no further stage is started; None: no limit.", _anything
    ),
    Parameter("track_filtered", False, "filtering", "Keep what the filters dropped in a table of its own.", _flag),
    Parameter("x_pixel_bounds", None, "core", "First and last x of starting pixels; None: all.", _or_none(_interval)),
    Parameter(
        "x_pixel_buffer",
        None,
        "core",
        "How far beyond the image starting pixels may lie in x [pixel].",
        _or_none(lambda value: _integer(value) and value >= 0),
    ),
    Parameter("y_pixel_bounds", None, "core", "First and last y of starting pixels; None: all.", _or_none(_interval)),
    Parameter(
        "y_pixel_buffer",
        None,
        "core",
        "How far beyond the image starting pixels may lie in y [pixel].",
        _or_none(lambda value: _integer(value) and value >= 0),
    ),
)


PARAMETER_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}

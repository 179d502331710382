"""SearchConfiguration: the parameters of a KBMOD search, in every form KBMOD stores them.

Parameters that `wustore.compat.parameters` does not list are kept as they are, so configurations of older and newer
KBMOD versions pass through.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from wustore.compat.image_metadata import fits_text
from wustore.compat.parameters import PARAMETER_BY_NAME, PARAMETERS, SECTIONS
from wustore.compat.yaml import dump_mapping, dump_value, load_mapping, load_value, plain
from wustore.errors import FormatError, UsageError
from wustore.format.tagged_json import RawYaml
from wustore.model.compare import same_value
from wustore.storage.files import open_regular

if TYPE_CHECKING:
    from astropy.io.fits import BinTableHDU
    from astropy.table import Table

__all__ = [
    "SearchConfiguration",
    "cells_to_hdu",
    "configuration_cells",
    "configuration_to_hdu",
    "copied",
    "hdu_to_configuration",
]

logger = logging.getLogger(__name__)

_DEFAULTS = {parameter.name: parameter.default for parameter in PARAMETERS}
_UNCHANGEABLE = {type(None), bool, int, float, str}


def copied(value: Any) -> Any:
    """Return a deep copy of parameters, most of them plain: `copy.deepcopy` alone takes as long as reading them."""
    if type(value) is dict:
        return {key: item if type(item) in _UNCHANGEABLE else copied(item) for key, item in value.items()}
    if type(value) is list:
        return [item if type(item) in _UNCHANGEABLE else copied(item) for item in value]
    return copy.deepcopy(value)


class SearchConfiguration:
    """The parameters of a search: KBMOD's defaults, overridden one by one.

    Parameters
    ----------
    data
        Values that replace defaults or add parameters.

    Examples
    --------
    >>> configuration = SearchConfiguration({"num_obs": 7})
    >>> configuration["num_obs"], configuration["lh_level"]
    (7, 10.0)
    """

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        self._params: dict[str, Any] = copied(_DEFAULTS)
        if data is not None:
            self.set_multiple(data)

    @classmethod
    def of(cls, given: Any) -> SearchConfiguration:
        """Return ``given`` itself, or what a mapping or KBMOD's own configuration holds, in its order.

        Parameters
        ----------
        given
            A configuration, ours or KBMOD's, or a mapping of names to values.

        Raises
        ------
        UsageError
            If it is no configuration.
        """
        if isinstance(given, SearchConfiguration):
            return given
        if isinstance(given, Mapping):
            return cls(given)
        values = getattr(given, "_params", None)
        if not isinstance(values, Mapping):
            raise UsageError("not a configuration", expected="SearchConfiguration or dict", found=type(given).__name__)
        configuration = cls()
        configuration._params = copied(dict(values))
        return configuration

    # -- values --

    def __contains__(self, key: object) -> bool:
        return key in self._params

    def __getitem__(self, key: str) -> Any:
        return self._params[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._params[key] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SearchConfiguration):
            return NotImplemented
        return same_value(self._params, other._params, ordered=False)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __str__(self) -> str:
        return "Configuration:\n" + "".join(f"{key}: {value}\n" for key, value in self._params.items())

    def __repr__(self) -> str:
        changed = {
            key: value
            for key, value in self._params.items()
            if key not in PARAMETER_BY_NAME or not same_value(value, PARAMETER_BY_NAME[key].default)
        }
        return f"SearchConfiguration({changed!r})"

    def set(self, param: str, value: Any, warn_on_unknown: bool = False) -> None:
        """Set a parameter.

        Parameters
        ----------
        param
            Its name; one that KBMOD does not know is kept as well.
        value
            Its value.
        warn_on_unknown
            Log a warning for a name that was not there.
        """
        if warn_on_unknown and param not in self._params:
            logger.warning("Setting unknown parameter: %s", param)
        self._params[param] = value

    def set_multiple(self, overrides: Mapping[str, Any]) -> None:
        """Set several parameters from a mapping of names to values.

        Parameters
        ----------
        overrides
            Names to values.
        """
        self._params.update(overrides)

    def copy(self) -> SearchConfiguration:
        """Return a deep copy."""
        return copy.deepcopy(self)

    def validate(self) -> bool:
        """Return whether every known parameter has a valid value; log the first that has not."""
        for key, value in self._params.items():
            parameter = PARAMETER_BY_NAME.get(key)
            if parameter is not None and not parameter.accepts(value):
                logger.warning("Invalid value for parameter %s: %s", key, value)
                return False
        return True

    def help(self, param: str | None = None) -> None:
        """Print what a parameter does, or all of them by section.

        Parameters
        ----------
        param
            Its name; all of them by default.
        """
        if param is not None:
            print(PARAMETER_BY_NAME.get(param, f"Parameter {param} is not recognized."))
            return
        print("KBMOD Supported Parameters:")
        for section in SECTIONS:
            print(f"\n--- {section.capitalize()} Parameters ---")
            for parameter in PARAMETERS:
                if parameter.section == section:
                    print(parameter)

    # -- forms --

    def to_dict(self) -> dict[str, Any]:
        """Return a deep copy of the values by name, in order."""
        params: dict[str, Any] = copied(self._params)
        return params

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """Return the defaults overridden by a mapping of names to values.

        Parameters
        ----------
        d
            Names to values.
        """
        return cls(d)

    def to_yaml(self) -> str:
        """Return the values as YAML that any safe reader takes: tuples as lists, numpy values as numbers."""
        return dump_mapping({key: plain(value) for key, value in self._params.items()})

    @classmethod
    def from_yaml(cls, config: str | IO[str]) -> Self:
        """Return a configuration from YAML text or an open text file.

        Parameters
        ----------
        config
            YAML text, or a file that is open for reading.

        Raises
        ------
        FormatError
            If it is not YAML, or not a mapping.
        """
        return cls(load_mapping(config if isinstance(config, str) else config.read()))

    def to_table(self) -> Table:
        """Return a table of one row, one column of YAML text for each parameter."""
        from astropy.table import Table

        return Table(rows=[configuration_cells(self._params)])

    @classmethod
    def from_table(cls, t: Table) -> Self:
        """Return a configuration from a table of one row of YAML texts.

        Parameters
        ----------
        t
            A column for each parameter.

        Raises
        ------
        FormatError
            If the table has more than one row, or a cell is not YAML.
        """
        if len(t) > 1:
            raise FormatError("More than one row in the configuration table", expected=1, found=len(t))
        return cls({name: _load_cell(name, t[name][0]) for name in t.colnames} if len(t) else None)

    def to_hdu(self) -> BinTableHDU:
        """Return the table HDU that KBMOD writes (it is named KBMOD_CONFIG in a file)."""
        return configuration_to_hdu(self._params)

    @classmethod
    def from_hdu(cls, hdu: BinTableHDU) -> Self:
        """Return a configuration from KBMOD's table HDU.

        Parameters
        ----------
        hdu
            A table as `to_hdu` makes it.

        Raises
        ------
        FormatError
            If the table has more than one row, or a cell is not YAML.
        """
        return cls(hdu_to_configuration(hdu))

    def to_file(self, filename: str | PathLike[str], overwrite: bool = False) -> None:
        """Write a YAML file, one section after the other, each parameter with its help.

        Parameters
        ----------
        filename
            Where to write.
        overwrite
            Replace an existing file; otherwise it is left alone and a warning is logged.
        """
        path = Path(filename)
        if path.is_file() and not overwrite:
            logger.warning("Configuration file %s already exists.", path)
            return
        rule = "# " + "=" * 70
        lines = []
        for section in SECTIONS:
            lines.append(f"{rule}\n# {section.capitalize()} Configuration\n{rule}\n")
            for parameter in PARAMETERS:
                if parameter.section == section and parameter.name in self._params:
                    entry = dump_mapping({parameter.name: plain(self._params[parameter.name])})
                    lines.append(f"\n# {parameter.help}\n{entry}")
            if section == "other":
                unknown = {key: plain(value) for key, value in self._params.items() if key not in PARAMETER_BY_NAME}
                lines += ["\n" + dump_mapping({key: value}) for key, value in unknown.items()]
            lines.append("\n")
        path.write_text("".join(lines), encoding="utf-8")

    @classmethod
    def from_file(cls, filename: str | PathLike[str]) -> Self:
        """Return a configuration from a YAML file.

        Parameters
        ----------
        filename
            The file.

        Raises
        ------
        StoreNotFoundError
            If there is no such file.
        FormatError
            If it does not hold a configuration.
        """
        path = Path(filename)
        try:
            with open_regular(path) as file:
                text = file.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError("a configuration file is not text", path=path) from error
        return cls.from_yaml(text)


def _load_cell(name: str, cell: Any) -> Any:
    text = cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell)
    try:
        return load_value(text)
    except FormatError as error:
        raise FormatError(
            "a configuration value is not YAML text", where=f"KBMOD_CONFIG, {name}", found=text[:80]
        ) from error


def configuration_cells(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of KBMOD's configuration table: YAML text for each parameter, in order.

    Values that KBMOD could not read back are written in plain terms (tuples as lists, numpy values as numbers).
    """
    return {key: dump_value(value if isinstance(value, RawYaml) else plain(value)) for key, value in values.items()}


def cells_to_hdu(cells: Mapping[str, str]) -> BinTableHDU:
    """Return KBMOD's configuration table, of one row, with these cells (`configuration_cells`), in ASCII."""
    from astropy.io import fits
    from astropy.table import Table

    row = {fits_text(name): np.array([fits_text(text)], dtype=np.str_) for name, text in cells.items()}
    return fits.BinTableHDU(Table(row))


def configuration_to_hdu(values: Mapping[str, Any]) -> BinTableHDU:
    """Return KBMOD's configuration table: one row, one column of YAML text for each parameter, in order."""
    return cells_to_hdu(configuration_cells(values))


def hdu_to_configuration(hdu: BinTableHDU) -> dict[str, Any]:
    """Return what KBMOD's configuration table holds, by parameter name, in order.

    Raises
    ------
    FormatError
        If the table has more than one row, or a cell is not YAML.
    """
    data = hdu.data
    if data is None or len(hdu.columns) == 0:
        return {}
    if len(data) > 1:
        raise FormatError("More than one row in the configuration table", where="KBMOD_CONFIG", expected=1)
    # By position: names that differ only in case are one name to astropy.
    return {name: _load_cell(name, data.field(k)[0]) for k, name in enumerate(hdu.columns.names) if len(data)}

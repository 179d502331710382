"""Rice-coded tiles: coded by compiled loops, or by cfitsio."""
